package postgres

import (
	"context"
	"net/http"
	"testing"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/pgtest"
)

// TestNUL has the one character that PostgreSQL's text has no place for, wherever a caller can put it.
func TestNUL(t *testing.T) {
	s := open(t, pgtest.URL(t))
	w, node := newWebhook(t, s), newNode(t, s)
	const nul = "a\x00b"
	ctx := t.Context()

	// Nothing is called that, so nothing is found.
	if _, err := s.Event(ctx, "\xff", "e"); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
		t.Errorf("Event of a repo that is not UTF-8: %v", err)
	}
	missing := map[string]func() error{
		"Webhook":        func() error { _, err := s.Webhook(ctx, nul, w.ID); return err },
		"Webhook by ID":  func() error { _, err := s.Webhook(ctx, "repo", nul); return err },
		"UpdateWebhook":  func() error { _, err := s.UpdateWebhook(ctx, nul, w.ID, nil); return err },
		"DeleteWebhook":  func() error { return s.DeleteWebhook(ctx, "repo", nul) },
		"Event":          func() error { _, err := s.Event(ctx, nul, "e"); return err },
		"Event by ID":    func() error { _, err := s.Event(ctx, "repo", nul); return err },
		"Delivery":       func() error { _, err := s.Delivery(ctx, nul, w.ID, "d"); return err },
		"Delivery by ID": func() error { _, err := s.Delivery(ctx, "repo", w.ID, nul); return err },
		"Deliveries": func() error {
			_, err := s.Deliveries(ctx, posthorn.DeliveryQuery{RepoID: nul, WebhookID: w.ID})
			return err
		},
		"Deliveries by ID": func() error {
			_, err := s.Deliveries(ctx, posthorn.DeliveryQuery{RepoID: "repo", WebhookID: nul})
			return err
		},
	}
	for name, call := range missing {
		if err := call(); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if page, err := s.Webhooks(ctx, posthorn.WebhookQuery{RepoID: nul}); err != nil || len(page.Items) != 0 || page.Total != 0 {
		t.Errorf("Webhooks: %+v, %v", page, err)
	}
	if page, err := s.Events(ctx, posthorn.EventQuery{RepoID: nul}); err != nil || len(page.Items) != 0 || page.Total != 0 {
		t.Errorf("Events: %+v, %v", page, err)
	}
	for _, q := range []posthorn.DeliveryQuery{{EventType: nul}, {EventID: nul}} {
		q.RepoID, q.WebhookID = "repo", w.ID
		if page, err := s.Deliveries(ctx, q); err != nil || len(page.Items) != 0 || page.Total != 0 {
			t.Errorf("Deliveries: %+v, %v", page, err)
		}
	}

	// Where it would have to be stored, that is the caller's error.
	for _, hook := range []posthorn.Webhook{{RepoID: nul}, {ID: nul}, {URL: nul}, {Description: nul}, {Description: "\xff"}} {
		if err := s.CreateWebhooks(ctx, &hook); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
			t.Errorf("CreateWebhooks of %+v: %v", hook, err)
		}
	}
	_, err := s.UpdateWebhook(ctx, "repo", w.ID, func(w *posthorn.Webhook) error {
		w.Description = nul
		return nil
	})
	wantCode(t, err, posthorn.CodeInvalid)
	bad, good := newEvent(start), newEvent(start)
	bad.RepoID = nul
	a := commitBatch(t, s, posthorn.Batch{Node: node, Events: []posthorn.NewEvent{accepting(bad, true, w), accepting(good, true, w)}})
	wantCode(t, a[0].Err, posthorn.CodeInvalid)
	if a[1] != (posthorn.Acceptance{Deliveries: 1}) {
		t.Errorf("the good one beside it: %+v", a[1])
	}

	// What comes from a receiver is kept as it is.
	r := delivered(leasedEntryOf(w, good), start)
	r.Delivery.ResponseBody = nul + "\ufffd\\u0000"
	r.Delivery.Exchange.Header = http.Header{"X-Odd": {nul, "\\u0000", "'"}}
	commitBatch(t, s, posthorn.Batch{Node: node, Results: []posthorn.Result{r}})
	d := logOf(t, s, w).Items[0]
	if d.ResponseBody != r.Delivery.ResponseBody || d.Exchange.Header.Get("X-Odd") != nul {
		t.Errorf("logged as %q with %q", d.ResponseBody, d.Exchange.Header)
	}
	for _, id := range []string{nul, ""} {
		if _, err := s.Delivery(context.Background(), "repo", w.ID, id); posthorn.ErrorCode(err) != posthorn.CodeNotFound {
			t.Error(err)
		}
	}
}
