package httpapi

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

// routes are the operations that there are, and the scopes that they need.
var routes = map[string]posthorn.Scope{
	"DELETE /api/v1/repos/{repoId}/webhooks/{webhookId}":                                 posthorn.ScopeWebhooksWrite,
	"DELETE /api/v1/repos/{repoId}/webhooks/{webhookId}/secrets/{secretId}":              posthorn.ScopeWebhooksWrite,
	"DELETE /api/v1/tokens/{tokenId}":                                                    posthorn.ScopeAdmin,
	"GET /api/v1/audit":                                                                  posthorn.ScopeAdmin,
	"GET /api/v1/event-types":                                                            posthorn.ScopeEventsRead,
	"GET /api/v1/repos/{repoId}/audit":                                                   posthorn.ScopeAuditRead,
	"GET /api/v1/repos/{repoId}/events":                                                  posthorn.ScopeEventsRead,
	"GET /api/v1/repos/{repoId}/events/{eventId}":                                        posthorn.ScopeEventsRead,
	"GET /api/v1/repos/{repoId}/events/{eventId}/explain":                                posthorn.ScopeDeliveriesRead,
	"GET /api/v1/repos/{repoId}/webhooks":                                                posthorn.ScopeWebhooksRead,
	"GET /api/v1/repos/{repoId}/webhooks/{webhookId}":                                    posthorn.ScopeWebhooksRead,
	"GET /api/v1/repos/{repoId}/webhooks/{webhookId}/deliveries":                         posthorn.ScopeDeliveriesRead,
	"GET /api/v1/repos/{repoId}/webhooks/{webhookId}/deliveries/{deliveryId}":            posthorn.ScopeDeliveriesRead,
	"GET /api/v1/repos/{repoId}/webhooks/{webhookId}/public-keys":                        posthorn.ScopeWebhooksRead,
	"GET /api/v1/repos/{repoId}/webhooks/{webhookId}/secrets":                            posthorn.ScopeWebhooksRead,
	"GET /api/v1/secret-keys":                                                            posthorn.ScopeAdmin,
	"GET /api/v1/tokens":                                                                 posthorn.ScopeAdmin,
	"PATCH /api/v1/repos/{repoId}/webhooks/{webhookId}":                                  posthorn.ScopeWebhooksWrite,
	"POST /api/v1/check-url":                                                             posthorn.ScopeWebhooksWrite,
	"POST /api/v1/repos/{repoId}/events":                                                 posthorn.ScopeEventsWrite,
	"POST /api/v1/repos/{repoId}/events:batch":                                           posthorn.ScopeEventsWrite,
	"POST /api/v1/repos/{repoId}/filter-test":                                            posthorn.ScopeEventsRead,
	"POST /api/v1/repos/{repoId}/webhooks":                                               posthorn.ScopeWebhooksWrite,
	"POST /api/v1/repos/{repoId}/webhooks/{webhookId}/deliveries/{deliveryId}/redeliver": posthorn.ScopeDeliveriesWrite,
	"GET /api/v1/repos/{repoId}/webhooks/{webhookId}/poll":                               posthorn.ScopeDeliveriesWrite,
	"GET /api/v1/repos/{repoId}/webhooks/{webhookId}/replays":                            posthorn.ScopeDeliveriesRead,
	"GET /api/v1/repos/{repoId}/webhooks/{webhookId}/replays/{replayId}":                 posthorn.ScopeDeliveriesRead,
	"POST /api/v1/repos/{repoId}/webhooks/{webhookId}/replays":                           posthorn.ScopeDeliveriesWrite,
	"POST /api/v1/repos/{repoId}/webhooks/{webhookId}/replays/{replayId}/cancel":         posthorn.ScopeDeliveriesWrite,
	"POST /api/v1/repos/{repoId}/webhooks/{webhookId}/test":                              posthorn.ScopeWebhooksWrite,
	"POST /api/v1/repos/{repoId}/webhooks/{webhookId}/ping":                              posthorn.ScopeWebhooksWrite,
	"POST /api/v1/repos/{repoId}/webhooks/{webhookId}/secrets":                           posthorn.ScopeWebhooksWrite,
	"POST /api/v1/tokens":                                                                posthorn.ScopeAdmin,
}

// operations returns the document's operations by method and path.
func (api *testAPI) operations() map[string]*huma.Operation {
	operations := map[string]*huma.Operation{}
	for path, item := range api.api.OpenAPI().Paths {
		for method, op := range map[string]*huma.Operation{
			"GET": item.Get, "POST": item.Post, "PATCH": item.Patch, "DELETE": item.Delete, "PUT": item.Put,
		} {
			if op != nil {
				operations[method+" "+path] = op
			}
		}
	}
	return operations
}

func TestDocument(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	document := api.do("GET", "/openapi.json", "", "Authorization: ").ok(http.StatusOK)
	if v := document["openapi"].(string); !strings.HasPrefix(v, "3.1.") {
		t.Errorf("OpenAPI %s", v)
	}
	if v := document["info"].(map[string]any)["version"]; v != "1.2.3" {
		t.Errorf("version %v", v)
	}
	var got []string
	ids := map[string]bool{}
	for path, item := range document["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			route := strings.ToUpper(method) + " " + path
			got = append(got, route)
			checkOperation(t, route, op.(map[string]any))
			ids[op.(map[string]any)["operationId"].(string)] = true
		}
	}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(maps.Keys(routes))) {
		t.Errorf("the operations are\n%s", strings.Join(got, "\n"))
	}
	if len(ids) != len(routes) {
		t.Errorf("%d operations have %d ids", len(routes), len(ids))
	}
	schemas := document["components"].(map[string]any)["schemas"].(map[string]any)
	walk(document, func(v map[string]any) {
		if ref, ok := v["$ref"].(string); ok && schemas[strings.TrimPrefix(ref, "#/components/schemas/")] == nil {
			t.Errorf("%s leads nowhere", ref)
		}
		if v["$schema"] != nil || v["type"] == "" {
			t.Errorf("huma's own: %v", v)
		}
	})
	for name, schema := range schemas {
		isRequest := slices.Contains([]string{"NewWebhook", "WebhookPatch", "NewEvent", "NewEvents", "NewSecret", "NewTLS", "NewToken", "CheckedURL", "FilterTest", "NewReplay", "TestEvent"}, name)
		if more := schema.(map[string]any)["additionalProperties"]; more != !isRequest {
			t.Errorf("%s: additionalProperties is %v", name, more)
		}
		if strings.HasSuffix(name, "JSON") || strings.HasPrefix(name, "Error") {
			t.Errorf("there is a type %s", name)
		}
	}
}

func checkOperation(t *testing.T, route string, op map[string]any) {
	var inPath []string
	for _, p := range list(op["parameters"]) {
		if p := p.(map[string]any); p["in"] == "path" {
			inPath = append(inPath, "{"+p["name"].(string)+"}")
		}
	}
	if want := regexp.MustCompile(`{\w+}`).FindAllString(route, -1); !slices.Equal(inPath, want) {
		t.Errorf("%s has the path parameters %v", route, inPath)
	}
	hasBody := strings.HasPrefix(route, "PATCH") || strings.HasSuffix(route, "/webhooks") && route[0] == 'P' || strings.Contains(route, "/events") && route[0] == 'P' ||
		strings.HasSuffix(route, "/secrets") && route[0] == 'P' || strings.HasSuffix(route, "/check-url") || strings.HasSuffix(route, "/filter-test") || route[0] == 'P' && strings.HasSuffix(route, "/replays") || strings.HasSuffix(route, "}/test") || route == "POST /api/v1/tokens"
	if (op["requestBody"] != nil) != hasBody {
		t.Errorf("%s: request body %v", route, op["requestBody"])
	}
	if body, ok := op["requestBody"].(map[string]any); ok {
		if types := slices.Collect(maps.Keys(body["content"].(map[string]any))); !slices.Equal(types, []string{"application/json"}) {
			t.Errorf("%s takes %v", route, types)
		}
	}
	responses := op["responses"].(map[string]any)
	if got := fmt.Sprint(responses["default"]); !strings.Contains(got, "application/problem+json") || !strings.Contains(got, "/Problem") {
		t.Errorf("%s: errors are %s", route, got)
	}
	if len(list(op["security"])) != 1 || op["summary"] == nil || len(list(op["tags"])) != 1 {
		t.Errorf("%s lacks its scope, summary or tag: %v", route, op)
	}
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func walk(v any, visit func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		visit(v)
		for _, child := range v {
			walk(child, visit)
		}
	case []any:
		for _, child := range v {
			walk(child, visit)
		}
	}
}

// Case 25.
func TestEveryOperationDemandsTheToken(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	for route := range api.operations() {
		method, path, _ := strings.Cut(route, " ")
		path = regexp.MustCompile(`{\w+}`).ReplaceAllString(path, "x")
		for _, header := range []string{"", "Basic " + token, token, "Bearer", "Bearer  "} {
			a := api.do(method, path, "{", "Authorization: "+header)
			a.problem(http.StatusUnauthorized, "Authorization: Bearer", "")
			if got := a.header.Get("WWW-Authenticate"); got != "Bearer" {
				t.Errorf("%s with %q: WWW-Authenticate %q", route, header, got)
			}
		}
		for _, bad := range []string{"t0ke", "t0kenn", "T0KEN", "x", strings.Repeat("t0ken", 1000), "t0ken t0ken"} {
			a := api.do(method, path, "{", "Authorization: Bearer "+bad)
			a.problem(http.StatusUnauthorized, "not valid", "")
			if got := a.header.Get("WWW-Authenticate"); got != `Bearer error="invalid_token"` {
				t.Errorf("%s with a bad token: WWW-Authenticate %q", route, got)
			}
		}
		if a := api.do(method, path, "{", "Authorization: bearer "+token); a.status == http.StatusUnauthorized {
			t.Errorf("%s refuses the right token: %s", route, a.body)
		}
	}
	for _, path := range []string{"/healthz", "/openapi.json", "/docs"} {
		if a := api.do("GET", path, "", "Authorization: "); a.status != http.StatusOK {
			t.Errorf("%s demands a token: %d", path, a.status)
		}
	}
}

// What an operation asks of who sends the request: to know the repo, whatever is in it, and the scope that is documented.
func TestScopes(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	api.authorizer = func(*http.Request) (Principal, error) { return Principal{Name: "nobody", Repos: []string{"a/b"}}, nil }
	for route, op := range api.operations() {
		method, path, _ := strings.Cut(route, " ")
		in := func(repo string) string {
			return regexp.MustCompile(`{\w+}`).ReplaceAllString(path, strings.ReplaceAll(repo, "%", "%%"))
		}
		documented := op.Security[0]["bearer"][0]
		if want := string(routes[route]); documented != want {
			t.Errorf("%s documents the scope %s, want %s", route, documented, want)
		}
		a := api.do(method, strings.ReplaceAll(in("a%2Fb"), "%%", "%"), "{", "Authorization: Bearer x")
		a.problem(http.StatusForbidden, documented, "")
		if got := a.header.Get("WWW-Authenticate"); got != `Bearer error="insufficient_scope", scope="`+documented+`"` {
			t.Errorf("%s: WWW-Authenticate %q", route, got)
		}
		if strings.Contains(path, "{repoId}") {
			api.do(method, in("a"), "{", "Authorization: Bearer x").problem(http.StatusNotFound, "Repo not found", "")
		}
	}
}

// matches checks an answer against what the document says of the operation.
func (api *testAPI) matches(operationID string, a answer) {
	api.t.Helper()
	for _, op := range api.operations() {
		if op.OperationID != operationID {
			continue
		}
		response := op.Responses[fmt.Sprint(a.status)]
		if response == nil {
			api.t.Errorf("%s: the status %d is not documented", operationID, a.status)
			return
		}
		var v any
		if err := json.Unmarshal(a.body, &v); err != nil {
			api.t.Fatal(err)
		}
		var result huma.ValidateResult
		huma.Validate(api.api.OpenAPI().Components.Schemas, response.Content["application/json"].Schema,
			huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, v, &result)
		for _, err := range result.Errors {
			api.t.Errorf("%s: %v", operationID, err)
		}
		return
	}
	api.t.Errorf("no operation %s", operationID)
}

func TestDocsPage(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	a := api.do("GET", "/docs", "", "Authorization: ")
	page := string(a.body)
	if ct := a.header.Get("Content-Type"); a.status != http.StatusOK || ct != "text/html; charset=utf-8" {
		t.Fatalf("%d, %s", a.status, ct)
	}
	for _, op := range api.operations() {
		if !strings.Contains(page, `<h3 id="`+op.OperationID+`">`) {
			t.Errorf("%s is not on the page", op.OperationID)
		}
	}
	ids := map[string]bool{}
	for _, m := range regexp.MustCompile(` id="(\w+)"`).FindAllStringSubmatch(page, -1) {
		ids[m[1]] = true
	}
	for _, m := range regexp.MustCompile(` (?:href|src)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if anchor, ok := strings.CutPrefix(m[1], "#"); !ok && m[1] != "openapi.json" || ok && !ids[anchor] {
			t.Errorf("the page links to %s", m[1])
		}
	}
	for _, bad := range []string{"<script", "@import", "url(", "ZgotmplZ", "%!"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	styles := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindAllStringSubmatch(page, -1)
	if len(styles) != 1 {
		t.Fatalf("%d styles", len(styles))
	}
	sum := sha256.Sum256([]byte(styles[0][1]))
	want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; "
	if csp := a.header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, want) || strings.Contains(csp, "unsafe") {
		t.Errorf("policy %s, want %s…", csp, want)
	}
}
