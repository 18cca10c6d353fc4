package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A tail prints each delivery once and in order, also when more arrive between two looks than a page holds, and while it
// reads one.
func TestTail(t *testing.T) {
	var log []delivery // oldest first
	start := time.Now()
	add := func(n int) {
		for range n {
			i := len(log)
			log = append(log, delivery{
				DeliveryID: fmt.Sprintf("d%04d", i), Success: i%3 == 0, DeliveredAt: start.Add(time.Duration(i) * time.Minute),
			})
		}
	}
	during := 0 // how many arrive after each page
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before := len(log)
		if c := r.FormValue("cursor"); c != "" {
			before, _ = strconv.Atoi(c)
		}
		limit, _ := strconv.Atoi(r.FormValue("limit"))
		since, _ := time.Parse(time.RFC3339Nano, r.FormValue("since"))
		var page struct {
			Deliveries []delivery `json:"deliveries"`
			NextCursor string     `json:"nextCursor"`
		}
		for i := before - 1; i >= 0; i-- {
			if len(page.Deliveries) == limit {
				page.NextCursor = strconv.Itoa(i + 1)
				break
			}
			if log[i].DeliveredAt.After(since) && (r.FormValue("success") == "" || strconv.FormatBool(log[i].Success) == r.FormValue("success")) {
				page.Deliveries = append(page.Deliveries, log[i])
			}
		}
		add(during)
		_ = json.NewEncoder(w).Encode(page)
	}))
	defer s.Close()

	for _, before := range []int{0, 3, 500} {
		for _, lines := range []int{0, 1, 10} {
			for _, during = range []int{0, 2} {
				t.Run(fmt.Sprintf("%d before, %d lines, %d during", before, lines, during), func(t *testing.T) {
					log = nil
					add(before)
					follow := tail{api: &client{base: s.URL}, path: "/log"}
					raw, err := follow.begin(t.Context(), url.Values{"success": {"true"}}, lines)
					if err != nil {
						t.Fatal(err)
					}
					got := ids(t, raw)
					if len(got) > lines+2*during {
						t.Errorf("it begins with %d lines", len(got))
					}
					for _, n := range []int{0, 1, 199, 200, 450, 0} {
						add(n)
						raw, err := follow.more(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						got = append(got, ids(t, raw)...)
					}
					during = 0
					raw, err = follow.more(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, ids(t, raw)...)

					var want []string // all that came after the beginning
					for _, d := range log[before:] {
						want = append(want, d.DeliveryID)
					}
					past := slices.DeleteFunc(slices.Clone(got), func(id string) bool { return slices.Contains(want, id) })
					if diff := cmp.Diff(append(past, want...), got); diff != "" {
						t.Errorf("-want +got:\n%s", diff)
					}
					if !slices.IsSorted(past) {
						t.Errorf("the past deliveries are out of order: %v", past)
					}
				})
			}
		}
	}
}

func ids(t *testing.T, raw []json.RawMessage) []string {
	t.Helper()
	var found []string
	for _, r := range raw {
		var d delivery
		if err := json.Unmarshal(r, &d); err != nil {
			t.Fatal(err)
		}
		found = append(found, d.DeliveryID)
	}
	return found
}
