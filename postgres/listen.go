package postgres

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/musehub/posthorn"
)

const (
	minReconnect = 100 * time.Millisecond
	maxReconnect = 5 * time.Second
	// A connection on which nothing comes is tested: one may be dead without anyone telling.
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second

	// What is told: that webhooks changed, or which webhooks have something due. The channel has the schema's name.
	changedPayload = "c"
	duePrefix      = "q"
	anyPayload     = "*" // there was more to tell than there is room for
	maxPayload     = 7999
)

// Listen implements [posthorn.Notifier]. It uses a connection of its own, outside the pool. It ends with the store, too.
func (s *Store) Listen(ctx context.Context, notify func(posthorn.Notification)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.closed, cancel)()
	for pause := minReconnect; ; pause = min(2*pause, maxReconnect) {
		if s.listen(ctx, notify) {
			pause = minReconnect
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// listen listens until the connection fails, and reports whether it was one at all. Why it failed is nothing to report:
// if the database can't be reached, everything else says so.
func (s *Store) listen(ctx context.Context, notify func(posthorn.Notification)) (connected bool) {
	conn, err := pgx.ConnectConfig(ctx, s.database.pool.ConnConfig)
	if err != nil {
		return false
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // nothing is lost with it
	}()
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	_, err = conn.Exec(bounded, "LISTEN "+s.names.quoted)
	cancel()
	if err != nil {
		return false
	}
	notify(posthorn.Notification{}) // for what was told while nobody listened
	for {
		n, err := waitForNotification(ctx, conn)
		switch {
		case err == nil:
			notify(n)
		case ctx.Err() != nil, conn.IsClosed():
			return true
		case ping(ctx, conn) != nil:
			return true
		}
	}
}

func waitForNotification(ctx context.Context, conn *pgx.Conn) (posthorn.Notification, error) {
	ctx, cancel := context.WithTimeout(ctx, pingEvery)
	defer cancel()
	n, err := conn.WaitForNotification(ctx)
	if err != nil {
		return posthorn.Notification{}, err
	}
	return parsePayload(n.Payload), nil
}

func ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return conn.Ping(ctx)
}

// duePayload tells which webhooks have something due.
func duePayload(webhooks []posthorn.Target) string {
	var b strings.Builder
	b.WriteString(duePrefix)
	for i, w := range webhooks {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatInt(w.WebhookSeq, 10))
	}
	if b.Len() > maxPayload {
		return anyPayload
	}
	return b.String()
}

// parsePayload takes what it doesn't understand, which a newer version may send, for news of any kind.
func parsePayload(payload string) posthorn.Notification {
	if payload == changedPayload {
		return posthorn.Notification{Changed: true}
	}
	list, ok := strings.CutPrefix(payload, duePrefix)
	if !ok {
		return posthorn.Notification{}
	}
	var n posthorn.Notification
	for seq := range strings.SplitSeq(list, ",") {
		webhook, err := strconv.ParseInt(seq, 10, 64)
		if err != nil {
			return posthorn.Notification{}
		}
		n.Due = append(n.Due, webhook)
	}
	return n
}
