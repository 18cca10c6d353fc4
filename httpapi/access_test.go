package httpapi

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/internal/jwtauth"
)

// tenant is what a repo has.
type tenant struct{ repo, webhook, delivery, event, secret, replay string }

// tenant makes a repo with one of everything.
func (api *testAPI) tenant(repo string) tenant {
	api.t.Helper()
	url := receiver(api.t.(*testing.T), func(http.ResponseWriter, *http.Request) {})
	base := "/api/v1/repos/" + repo
	w := api.do("POST", base+"/webhooks", `{"url":"`+url+`","events":["push"],"generateSecret":"hmac"}`).ok(http.StatusCreated)
	t := tenant{repo: repo, webhook: w["webhookId"].(string), event: "shared"}
	api.do("POST", base+"/events", `{"eventType":"push","eventId":"shared","payload":"of `+repo+`"}`).ok(http.StatusAccepted)
	t.delivery = (<-api.made).ID
	secrets := api.do("GET", base+"/webhooks/"+t.webhook+"/secrets", "").ok(http.StatusOK)["secrets"].([]any)
	t.secret = secrets[0].(map[string]any)["secretId"].(string)
	replay := api.do("POST", base+"/webhooks/"+t.webhook+"/replays", `{"since":"2026-01-01T00:00:00Z","dryRun":true}`).ok(http.StatusCreated)
	t.replay = replay["replayId"].(string)
	return t
}

// at is the path of a route in the repo, with the ids of what another tenant has.
func (t tenant) at(route string, ids tenant) string {
	return strings.NewReplacer("{replayId}", ids.replay, "{repoId}", t.repo, "{webhookId}", ids.webhook, "{deliveryId}", ids.delivery, "{eventId}", ids.event,
		"{secretId}", ids.secret, "{tokenId}", "01900000-0000-7000-8000-000000000000").Replace(route)
}

// caller is a kind of credentials. Every route is walked with each.
type caller struct {
	name    string
	headers func(need posthorn.Scope) []string
	own     func(need posthorn.Scope) int // the status in the own repo, or where there is none
	foreign int
}

const passed = http.StatusUnprocessableEntity // what an authorized request gets, for its query

// Every route, with every kind of credentials, in the own repo and in others.
func TestAccess(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	const secret = "a secret that others sign with, of more than 32 bytes"
	verifier, err := jwtauth.New(jwtauth.Config{Secret: secret, ReposClaim: "repos", ScopesClaim: "scope"})
	if err != nil {
		t.Fatal(err)
	}
	api.authorizer = func(r *http.Request) (Principal, error) {
		if scope := posthorn.Scope(r.Header.Get("X-Scope")); scope != "" {
			return Principal{"user:x", []posthorn.Scope{scope}, []string{"own"}, false}, nil
		}
		claims, err := verifier.Verify(r.Context(), strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) // as the binary does
		if err != nil {
			return Principal{}, err
		}
		p := Principal{Name: "jwt:" + claims.Subject, Repos: claims.Repos, AllRepos: claims.AllRepos}
		for _, scope := range claims.Scopes {
			p.Scopes = append(p.Scopes, posthorn.Scope(scope))
		}
		return p, nil
	}
	jwt := func(key, repos string, scopes ...posthorn.Scope) []string {
		claims := fmt.Sprintf(`{"sub":"alice","type":"access","exp":%d,"repos":%s,"scope":%q}`, time.Now().Add(time.Hour).Unix(), repos, strings.Trim(fmt.Sprint(scopes), "[]"))
		input := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte(input))
		return []string{"Authorization: Bearer " + input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))}
	}
	own, foreign := api.tenant("own"), api.tenant("foreign")
	create := func(n posthorn.NewToken) string {
		n.Name = "test"
		_, text, err := api.dispatcher.CreateToken(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	revoked, text, err := api.dispatcher.CreateToken(t.Context(), posthorn.NewToken{
		Name: "test", Scopes: []posthorn.Scope{posthorn.ScopeAdmin}, AllRepos: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := api.dispatcher.RevokeToken(t.Context(), revoked.ID); err != nil {
		t.Fatal(err)
	}
	var soon time.Time
	expired := ""
	for life := 50 * time.Millisecond; expired == ""; life *= 2 { // one whose life is over before it begins is refused
		soon = time.Now().Add(life)
		_, expired, err = api.dispatcher.CreateToken(t.Context(), posthorn.NewToken{
			Name: "test", Scopes: []posthorn.Scope{posthorn.ScopeAdmin}, AllRepos: true, ExpiresAt: soon,
		})
		if err != nil && life > time.Minute {
			t.Fatal(err)
		}
	}
	for !time.Now().After(soon) {
		runtime.Gosched()
	}
	tokens := map[string]string{} // made once for each scope
	token := func(kind string, need posthorn.Scope, n posthorn.NewToken) []string {
		key := kind + string(need)
		if tokens[key] == "" {
			tokens[key] = create(n)
		}
		return []string{"Authorization: Bearer " + tokens[key]}
	}
	always := func(status int) func(posthorn.Scope) int { return func(posthorn.Scope) int { return status } }
	others := func(need posthorn.Scope) []posthorn.Scope {
		return slices.DeleteFunc(posthorn.Scopes(), func(s posthorn.Scope) bool { return s == need || s == posthorn.ScopeAdmin })
	}
	// No token for some repos can have the scope admin.
	unlessAdmin := func(need posthorn.Scope) int {
		if need == posthorn.ScopeAdmin {
			return http.StatusForbidden
		}
		return passed
	}
	scoped := func(need posthorn.Scope) []posthorn.Scope {
		if need == posthorn.ScopeAdmin {
			return others(need)
		}
		return []posthorn.Scope{need}
	}
	bearer := func(text string) func(posthorn.Scope) []string {
		return func(posthorn.Scope) []string { return []string{"Authorization: Bearer " + text} }
	}
	callers := []caller{
		{"nobody", func(posthorn.Scope) []string { return []string{"Authorization: "} }, always(401), 401},
		{"no token of ours", bearer("x"), always(401), 401},
		{"a mistyped token", bearer(text[:len(text)-1] + "9"), always(401), 401},
		{"a revoked token", bearer(text), always(401), 401},
		{"an expired token", bearer(expired), always(401), 401},
		{"the admin token", bearer("t0ken"), always(passed), passed},
		{"a token with the scope", func(need posthorn.Scope) []string {
			return token("scope", need, posthorn.NewToken{Scopes: scoped(need), Repos: []string{"own", "another"}})
		}, unlessAdmin, 404},
		{"a token with all other scopes", func(need posthorn.Scope) []string {
			return token("others", need, posthorn.NewToken{Scopes: others(need), Repos: []string{"own"}})
		}, always(403), 404},
		{"a token for another repo", func(need posthorn.Scope) []string {
			return token("elsewhere", need, posthorn.NewToken{Scopes: others(""), Repos: []string{"another"}})
		}, nil, 404},
		{"a token for all repos", func(need posthorn.Scope) []string {
			return token("all", need, posthorn.NewToken{Scopes: []posthorn.Scope{need}, AllRepos: true})
		}, always(passed), passed},
		{"a token for all repos with all other scopes", func(need posthorn.Scope) []string {
			return token("all others", need, posthorn.NewToken{Scopes: others(need), AllRepos: true})
		}, always(403), 403},
		{"an admin token for all repos", func(need posthorn.Scope) []string {
			return token("admin", "", posthorn.NewToken{Scopes: []posthorn.Scope{posthorn.ScopeAdmin}, AllRepos: true})
		}, always(passed), passed},
		{"a session", func(need posthorn.Scope) []string {
			return []string{"Authorization: ", "X-Scope: " + string(need)}
		}, unlessAdmin, 404},
		{"a session with another scope", func(posthorn.Scope) []string {
			return []string{"Authorization: ", "X-Scope: none"}
		}, always(403), 404},
		{"a JWT with the scope", func(need posthorn.Scope) []string { return jwt(secret, `["own"]`, need) }, unlessAdmin, 404},
		{"a JWT with all other scopes", func(need posthorn.Scope) []string { return jwt(secret, `["own"]`, others(need)...) }, always(403), 404},
		{"a JWT for another repo", func(need posthorn.Scope) []string { return jwt(secret, `["another"]`, need) }, nil, 404},
		{"a JWT for all repos", func(need posthorn.Scope) []string { return jwt(secret, `"*"`, need) }, always(passed), passed},
		{"a JWT of another secret", func(need posthorn.Scope) []string { return jwt(secret+"!", `"*"`, need) }, always(401), 401},
	}
	never := tenant{"never", foreign.webhook, foreign.delivery, foreign.event, foreign.secret, foreign.replay}
	for route := range api.operations() {
		method, path, _ := strings.Cut(route, " ")
		need := routes[route]
		inRepo := strings.Contains(path, "{repoId}")
		for _, c := range callers {
			do := func(where tenant) answer {
				a := api.do(method, where.at(path, where)+"?nonsense=1", "{", c.headers(need)...)
				a.header.Del("Date")
				return a
			}
			if c.own != nil {
				if a, want := do(own), c.own(need); a.status != want {
					t.Errorf("%s by %s: %d, want %d: %s", route, c.name, a.status, want, a.body)
				}
			}
			if !inRepo {
				continue
			}
			there, nowhere := do(foreign), do(never)
			if there.status != c.foreign {
				t.Errorf("%s by %s in a foreign repo: %d, want %d: %s", route, c.name, there.status, c.foreign, there.body)
			}
			if nowhere.status != there.status || string(nowhere.body) != string(there.body) || !maps.EqualFunc(nowhere.header, there.header, slices.Equal) {
				t.Errorf("%s by %s: a foreign repo is told from one that isn't there:\n%v %s\n%v %s",
					route, c.name, there.header, there.body, nowhere.header, nowhere.body)
			}
		}
	}
}

// What another repo has is not there, whatever its ids are worth to who knows them.
func TestForeignIDs(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	own, foreign := api.tenant("own"), api.tenant("foreign")
	_, text, err := api.dispatcher.CreateToken(t.Context(), posthorn.NewToken{
		Name: "test", Repos: []string{"own"},
		Scopes: slices.DeleteFunc(posthorn.Scopes(), func(s posthorn.Scope) bool { return s == posthorn.ScopeAdmin }),
	})
	if err != nil {
		t.Fatal(err)
	}
	bodies := map[string]string{"updateWebhook": `{"active":false}`, "rotateSecret": "{}", "startReplay": `{"since":"2026-01-01T00:00:00Z"}`, "testWebhook": `{"eventType":"push","payload":1}`}
	unknown := tenant{
		webhook: "01900000-0000-7000-8000-000000000000", delivery: "01900000-0000-7000-8000-000000000001",
		event: "unknown", secret: "01900000-0000-7000-8000-000000000002", replay: "01900000-0000-7000-8000-000000000003",
	}
	foreign.event = "of-foreign"
	api.do("POST", "/api/v1/repos/foreign/events", `{"eventType":"push","eventId":"of-foreign","payload":1}`).ok(http.StatusAccepted)
	<-api.made
	for route, op := range api.operations() {
		method, path, _ := strings.Cut(route, " ")
		if !strings.Contains(path, "{repoId}/") || strings.Count(path, "{") < 2 {
			continue
		}
		do := func(ids tenant) answer {
			a := api.do(method, own.at(path, ids), bodies[op.OperationID], "Authorization: Bearer "+text)
			a.header.Del("Date")
			return a
		}
		there, nowhere := do(foreign), do(unknown)
		there.problem(http.StatusNotFound, "", "")
		if string(there.body) != string(nowhere.body) || !maps.EqualFunc(there.header, nowhere.header, slices.Equal) {
			t.Errorf("%s: %v %s for a foreign one, %v %s for none", route, there.header, there.body, nowhere.header, nowhere.body)
		}
		if strings.Contains(path, "{webhookId}/") { // its own webhook, another's delivery or secret
			mixed := foreign
			mixed.webhook = own.webhook
			if strings.Count(path, "{") == 3 {
				do(mixed).problem(http.StatusNotFound, "", "")
			}
		}
	}
	// An event's id belongs to its repo. (Both tenants have one of the id "shared" already, with other payloads.)
	api.do("POST", "/api/v1/repos/own/events", `{"eventType":"push","eventId":"of-foreign","payload":2}`,
		"Authorization: Bearer "+text).ok(http.StatusAccepted)
	<-api.made
	if a := api.do("GET", "/api/v1/repos/foreign/webhooks/"+foreign.webhook, ""); a.ok(http.StatusOK)["active"] != true {
		t.Error("the foreign webhook was changed")
	}
}

// The routes of tokens, and what they leave behind.
func TestTokens(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	made := api.do("POST", "/api/v1/tokens", `{"name":"CI","scopes":["webhooks:read","audit:read"],"repos":["own"],"expiresAt":"2999-01-31T12:00:00+01:00"}`).ok(http.StatusCreated)
	text := made["token"].(string)
	if !strings.HasPrefix(text, posthorn.TokenPrefix) || made["expiresAt"] != "2999-01-31T11:00:00.000000Z" || made["lastUsedAt"] != nil || made["allRepos"] != false {
		t.Errorf("the token is shown as %v", made)
	}
	for body, field := range map[string]string{
		`{"name":"","scopes":["admin"],"allRepos":true}`:                                                  "name",
		`{"name":"x","scopes":[],"allRepos":true}`:                                                        "scopes",
		`{"name":"x","scopes":["everything"],"allRepos":true}`:                                            "scopes",
		`{"name":"x","scopes":["admin","admin"],"allRepos":true}`:                                         "scopes",
		`{"name":"x","scopes":["admin"],"repos":["r"]}`:                                                   "scopes",
		`{"name":"x","scopes":["webhooks:read"]}`:                                                         "repos",
		`{"name":"x","scopes":["webhooks:read"],"repos":["r"],"allRepos":true}`:                           "repos",
		`{"name":"x","scopes":["webhooks:read"],"repos":["r","r"]}`:                                       "repos",
		`{"name":"x","scopes":["webhooks:read"],"repos":[""]}`:                                            "repoId",
		`{"name":"x","scopes":["webhooks:read"],"allRepos":true,"expiresAt":"tomorrow"}`:                  "expiresAt",
		`{"name":"x","scopes":["webhooks:read"],"allRepos":true,"expiresAt":"9999-12-31T23:59:59-01:00"}`: "expiresAt",
		`{"name":"x","scopes":["webhooks:read"],"allRepos":true,"expiresAt":"2001-01-01T00:00:00Z"}`:      "expiresAt",
	} {
		a := api.do("POST", "/api/v1/tokens", body)
		a.problem(http.StatusUnprocessableEntity, "", field)
	}
	repos := func(n int) string {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf(`"r%d"`, i)
		}
		return strings.Join(names, ",")
	}
	for n, body := range []string{ // the second of each two is beyond the bound
		`{"name":"` + strings.Repeat("ü", posthorn.MaxTokenNameLength) + `","scopes":["webhooks:read"],"allRepos":true}`,
		`{"name":"` + strings.Repeat("ü", posthorn.MaxTokenNameLength+1) + `","scopes":["webhooks:read"],"allRepos":true}`,
		`{"name":"x","scopes":["webhooks:read"],"repos":[` + repos(posthorn.MaxTokenRepos) + `]}`,
		`{"name":"x","scopes":["webhooks:read"],"repos":[` + repos(posthorn.MaxTokenRepos+1) + `]}`,
	} {
		if a := api.do("POST", "/api/v1/tokens", body); n%2 == 1 {
			a.problem(http.StatusUnprocessableEntity, "", []string{"name", "repos"}[n/2])
		} else {
			api.do("DELETE", "/api/v1/tokens/"+a.ok(http.StatusCreated)["tokenId"].(string), "").ok(http.StatusNoContent)
		}
	}
	api.do("GET", "/api/v1/repos/own/webhooks", "", "Authorization: Bearer "+text).ok(http.StatusOK)
	list := api.do("GET", "/api/v1/tokens?limit=1", "")
	if strings.Contains(string(list.body), text) {
		t.Error("the listing shows the token's text")
	}
	shown := list.ok(http.StatusOK)
	first := shown["tokens"].([]any)[0].(map[string]any)
	if first["tokenId"] != made["tokenId"] || first["lastUsedAt"] == nil || shown["total"] != 1.0 || shown["nextCursor"] != nil {
		t.Errorf("tokens are listed as %v", shown)
	}
	api.do("GET", "/api/v1/tokens?cursor=x", "").problem(http.StatusUnprocessableEntity, "", "cursor")
	api.do("DELETE", "/api/v1/tokens/"+made["tokenId"].(string), "").ok(http.StatusNoContent)
	api.do("DELETE", "/api/v1/tokens/"+made["tokenId"].(string), "").problem(http.StatusNotFound, "Token not found", "")
	api.do("GET", "/api/v1/repos/own/webhooks", "", "Authorization: Bearer "+text).problem(http.StatusUnauthorized, "no such token", "")
}

// Every kind of change leaves its line, and no line has a secret or a URL. That it does so in the same transaction is for stores to
// show, in storetest's testAudit.
func TestAuditLog(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	_, text, err := api.dispatcher.CreateToken(t.Context(), posthorn.NewToken{
		Name: "CI", Repos: []string{"r1"},
		Scopes: slices.DeleteFunc(posthorn.Scopes(), func(s posthorn.Scope) bool { return s == posthorn.ScopeAdmin }),
	})
	if err != nil {
		t.Fatal(err)
	}
	as := "Authorization: Bearer " + text
	url := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/very-secret-path/"))
		w.WriteHeader(status)
	})
	w := api.do("POST", "/api/v1/repos/r1/webhooks", `{"url":"`+url+`/very-secret-path/200","events":["push"],"secret":"hush-one"}`, as).ok(http.StatusCreated)
	hook := "/api/v1/repos/r1/webhooks/" + w["webhookId"].(string)
	api.do("PATCH", hook, `{"description":"x","secret":"hush-two"}`, as).ok(http.StatusOK)
	s := api.do("POST", hook+"/secrets", `{"secret":"hush-three","overlap":0}`, as).ok(http.StatusCreated)
	api.do("DELETE", hook+"/secrets/"+s["secretId"].(string), "", as).problem(http.StatusConflict, "", "") // it is the last
	api.do("POST", hook+"/secrets", `{"secret":"hush-four"}`, as).ok(http.StatusCreated)
	api.do("DELETE", hook+"/secrets/"+s["secretId"].(string), "", as).ok(http.StatusNoContent)
	api.do("POST", "/api/v1/repos/r1/events", `{"eventType":"push","payload":{}}`, as).ok(http.StatusAccepted)
	delivery := (<-api.made).ID
	api.do("POST", hook+"/deliveries/"+delivery+"/redeliver", "", as).ok(http.StatusOK)
	api.do("PATCH", hook, `{"url":"nonsense"}`, as).problem(http.StatusUnprocessableEntity, "", "url")
	api.do("GET", hook, "", as).ok(http.StatusOK)
	// One that fails holds the replay, so that there is something to cancel.
	api.do("PATCH", hook, `{"url":"`+url+`/very-secret-path/500","retryPolicy":"1h"}`, as).ok(http.StatusOK)
	replay := api.do("POST", hook+"/replays", `{"since":"2026-01-01T00:00:00Z","only":"all"}`, as).ok(http.StatusCreated)["replayId"].(string)
	api.do("POST", hook+"/replays/"+replay+"/cancel", "", as).ok(http.StatusOK)
	api.do("DELETE", hook, "", as).ok(http.StatusNoContent)
	api.do("DELETE", hook, "", as).problem(http.StatusNotFound, "", "")

	type line struct{ Actor, Action, RepoID, Subject, Detail, At string }
	read := func(path string, headers ...string) (lines []line) {
		a := api.do("GET", path, "", headers...)
		a.ok(http.StatusOK)
		for _, secret := range []string{"hush", text, "very-secret"} {
			if strings.Contains(string(a.body), secret) {
				t.Errorf("the audit log shows %q: %s", secret, a.body)
			}
		}
		var page struct{ Entries []line }
		if err := json.Unmarshal(a.body, &page); err != nil {
			t.Fatal(err)
		}
		return page.Entries
	}
	id := w["webhookId"].(string)
	want := []line{
		{Action: "webhook.delete", Subject: id},
		{Action: "replay.cancel", Subject: replay, Detail: "webhook " + id},
		{Action: "replay.create", Subject: replay, Detail: "webhook " + id + ", all"},
		{Action: "webhook.update", Subject: id, Detail: "url, retryPolicy"},
		{Action: "delivery.redeliver", Subject: delivery, Detail: "webhook " + id},
		{Action: "secret.revoke", Subject: id, Detail: s["secretId"].(string)},
		{Action: "secret.rotate", Subject: id},
		{Action: "secret.rotate", Subject: id},
		{Action: "webhook.update", Subject: id, Detail: "description, secret"},
		{Action: "webhook.create", Subject: id},
	}
	got := read("/api/v1/repos/r1/audit", as)
	if len(got) != len(want) {
		t.Fatalf("the audit log has %d entries, want %d: %+v", len(got), len(want), got)
	}
	for i, l := range got {
		if at, err := time.Parse(time.RFC3339, l.At); err != nil || time.Since(at) > time.Hour || at.After(time.Now().Add(time.Minute)) {
			t.Errorf("entry %d is of %q", i, l.At)
		}
		w := want[i]
		w.RepoID, w.At = "r1", l.At
		if !strings.HasPrefix(l.Actor, "token:") || !strings.HasSuffix(l.Actor, " CI") {
			t.Errorf("entry %d is by %q", i, l.Actor)
		}
		w.Actor = l.Actor
		if l != w {
			t.Errorf("entry %d is %+v, want %+v", i, l, w)
		}
	}
	all := read("/api/v1/audit")
	if len(all) != len(want)+1 || all[len(want)].Action != "token.create" || all[len(want)].Actor != "" {
		t.Errorf("the whole audit log is %+v", all)
	}

	// What is of no repo, and what Posthorn does by itself.
	made := api.do("POST", "/api/v1/tokens", `{"name":"short-lived","scopes":["admin"],"allRepos":true}`).ok(http.StatusCreated)["tokenId"].(string)
	api.do("DELETE", "/api/v1/tokens/"+made, "").ok(http.StatusNoContent)
	if l := read("/api/v1/audit")[0]; l.Action != "token.revoke" || l.Subject != made || l.Actor != "admin token" || l.RepoID != "" {
		t.Errorf("a token that was revoked leaves %+v", l)
	}
	gone := api.do("POST", "/api/v1/repos/r2/webhooks", `{"url":"`+url+`/very-secret-path/410","events":["push"]}`).ok(http.StatusCreated)["webhookId"].(string)
	api.do("POST", "/api/v1/repos/r2/webhooks/"+gone+"/ping", "").ok(http.StatusAccepted)
	last := line{}
	for deadline := time.Now().Add(time.Minute); last.Action != "webhook.disable" && time.Now().Before(deadline); {
		last = read("/api/v1/repos/r2/audit")[0]
	}
	if last.Subject != gone || last.Actor != "" || !strings.Contains(last.Detail, "410") {
		t.Errorf("a webhook that is gone leaves %+v", last)
	}
	left := auditActions(t)
	for _, l := range read("/api/v1/audit") {
		delete(left, l.Action)
	}
	if len(left) > 0 {
		t.Errorf("no change of this test has left these actions: %v", slices.Collect(maps.Keys(left)))
	}

	page := api.do("GET", "/api/v1/repos/r1/audit?limit=2", "", as).ok(http.StatusOK)
	cursor := page["nextCursor"].(string)
	if next := read("/api/v1/repos/r1/audit?limit=2&cursor="+cursor, as); len(next) != 2 || next[0] != got[2] {
		t.Errorf("the second page is %+v", next)
	}
	for _, other := range []string{"/api/v1/audit", "/api/v1/repos/r2/audit", "/api/v1/repos/r1/events"} {
		api.do("GET", other+"?cursor="+cursor, "").problem(http.StatusUnprocessableEntity, "", "cursor")
	}
	if strings.Contains(api.logged.String(), text) {
		t.Error("the log has the token's text")
	}
}

// auditActions returns the actions that the root package's code names.
func auditActions(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	actions := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range regexp.MustCompile(`(?:\bAction: |\.changeSecrets\(ctx, )(\S+?)[,}]`).FindAllSubmatch(source, -1) {
			if action, err := strconv.Unquote(string(found[1])); err == nil {
				actions[action] = true
			} else if string(found[1]) != "action" { // as changeSecrets has it from its callers
				t.Errorf("%s: %s is not the name of an action: this test has to find it", file, found[0])
			}
		}
	}
	return actions
}

// An Authorizer whose own means of checking are gone lets nobody in, and says that it isn't the caller's fault.
func TestAuthorizerUnavailable(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	api.authorizer = func(*http.Request) (Principal, error) {
		return Principal{}, posthorn.Errorf(posthorn.CodeUnavailable, "the sessions can't be read")
	}
	api.do("GET", "/api/v1/repos/r1/webhooks", "", "Authorization: ").problem(http.StatusServiceUnavailable, "can't be read", "")
	api.authorizer = func(*http.Request) (Principal, error) {
		return Principal{AllRepos: true, Scopes: posthorn.Scopes()}, nil
	}
	api.do("GET", "/api/v1/repos/r1/webhooks", "", "Authorization: ").problem(http.StatusInternalServerError, "", "")
	if !strings.Contains(api.logged.String(), "without a name") {
		t.Errorf("the log says %s", api.logged)
	}
	api.authorizer = func(*http.Request) (Principal, error) {
		return Principal{Name: strings.Repeat("x", MaxPrincipalName+1), AllRepos: true, Scopes: posthorn.Scopes()}, nil
	}
	api.do("GET", "/api/v1/repos/r1/webhooks", "", "Authorization: ").problem(http.StatusInternalServerError, "", "")
	if _, err := New(api.dispatcher, Config{}); posthorn.ErrorCode(err) != posthorn.CodeInvalid {
		t.Errorf("an API without any protection: %v", err)
	}
	if _, err := New(api.dispatcher, Config{Authorizer: api.authorizer}); err != nil {
		t.Error(err)
	}
}

// A token that could not be checked is not called wrong.
func TestTokenUnchecked(t *testing.T) {
	api := startAPI(t, posthorn.Config{})
	_, text, err := api.dispatcher.CreateToken(t.Context(), posthorn.NewToken{Name: "test", Scopes: []posthorn.Scope{posthorn.ScopeAdmin}, AllRepos: true})
	if err != nil {
		t.Fatal(err)
	}
	hungUp, cancel := context.WithCancel(t.Context())
	cancel()
	for method, path := range map[string]string{"GET": "/api/v1/event-types", "POST": "/api/v1/repos/r1/events"} { // the latter has a way of its own
		r := httptest.NewRequestWithContext(hungUp, method, path, nil)
		r.Header.Set("Authorization", "Bearer "+text)
		w := httptest.NewRecorder()
		api.server.ServeHTTP(w, r)
		a := answer{t, w.Code, w.Header(), w.Body.Bytes()}
		a.problem(http.StatusServiceUnavailable, "the request ended", "")
		if got := w.Header().Get("Www-Authenticate"); got != "" {
			t.Errorf("%s %s: Www-Authenticate %q", method, path, got)
		}
	}
	api.do("GET", "/api/v1/event-types", "", "Authorization: Bearer "+text).ok(http.StatusOK)
}
