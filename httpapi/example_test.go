package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/httpapi"
	"github.com/musehub/posthorn/sqlite"
)

// A host lets its users manage the webhooks of their repos with its own sessions.
func ExampleAuthorizer() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "posthorn")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	store, err := sqlite.Open(ctx, filepath.Join(dir, "posthorn.db"))
	if err != nil {
		panic(err)
	}
	defer store.Close()
	d, err := posthorn.New(store, posthorn.Config{})
	if err != nil {
		panic(err)
	}
	owns := map[string][]string{"alice": {"symphony"}} // what the host knows of its users

	api, err := httpapi.New(d, httpapi.Config{Authorizer: func(r *http.Request) (httpapi.Principal, error) {
		session, err := r.Cookie("session") // which the host would verify
		if err != nil {
			return httpapi.Principal{}, errors.New("sign in first")
		}
		return httpapi.Principal{
			Name:   "user:" + session.Value,
			Scopes: []posthorn.Scope{posthorn.ScopeWebhooksRead, posthorn.ScopeWebhooksWrite, posthorn.ScopeDeliveriesRead},
			Repos:  owns[session.Value],
		}, nil
	}})
	if err != nil {
		panic(err)
	}
	handler := http.NewCrossOriginProtection().Handler(api) // because cookies say who it is

	for _, repo := range []string{"symphony", "sonata"} {
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/repos/"+repo+"/webhooks", nil)
		r.AddCookie(&http.Cookie{Name: "session", Value: "alice"})
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		fmt.Println(repo, w.Code)
	}
	// Output:
	// symphony 200
	// sonata 404
}
