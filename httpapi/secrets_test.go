package httpapi

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/signature"
)

// A generated secret is shown by the answer that issues it, and by no other.
func TestGenerateSecret(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	const base = "/api/v1/repos/r1/webhooks"
	a := api.do("POST", base, `{"url": "https://example.com/", "events": ["push"], "generateSecret": "hmac"}`)
	api.matches("createWebhook", a)
	created := a.ok(http.StatusCreated)
	secret, _ := created["secret"].(string)
	if !strings.HasPrefix(secret, "whsec_") || len(secret) != 50 || created["hasSecret"] != true || created["publicKey"] != nil {
		t.Fatalf("%s", a.body)
	}
	path := base + "/" + created["webhookId"].(string)
	a = api.do("POST", path+"/secrets", `{"overlap": 60}`)
	api.matches("rotateSecret", a)
	rotated := a.ok(http.StatusCreated)
	second, _ := rotated["secret"].(string)
	if !strings.HasPrefix(second, "whsec_") || second == secret || rotated["kind"] != "hmac" || rotated["expiresAt"] != nil {
		t.Errorf("%s", a.body)
	}
	own := api.do("POST", path+"/secrets", `{"secret": "s3cret-of-mine", "overlap": 60}`).ok(http.StatusCreated)
	if own["secret"] != nil || own["kind"] != "hmac" {
		t.Errorf("an own secret: %v", own)
	}

	a = api.do("GET", path+"/secrets", "")
	api.matches("listSecrets", a)
	secrets := a.ok(http.StatusOK)["secrets"].([]any)
	if len(secrets) != 3 {
		t.Fatalf("%s", a.body)
	}
	newest, older := secrets[0].(map[string]any), secrets[1].(map[string]any)
	if newest["secretId"] != own["secretId"] || newest["expiresAt"] != nil || older["secretId"] != rotated["secretId"] {
		t.Errorf("%s", a.body)
	}
	until, err := time.Parse(time.RFC3339, older["expiresAt"].(string))
	if made, err2 := time.Parse(time.RFC3339, own["createdAt"].(string)); err != nil || err2 != nil || until.Sub(made) != time.Minute {
		t.Errorf("the older one signs until %v: %v, %v", until, err, err2)
	}
	for _, answer := range []answer{a, api.do("GET", path, ""), api.do("GET", base, ""), api.do("PATCH", path, `{"active": true}`)} {
		for _, value := range []string{secret, second, "s3cret-of-mine", "whsec_"} {
			if strings.Contains(string(answer.body), value) {
				t.Errorf("a secret is shown: %s", answer.body)
			}
		}
	}

	if a := api.do("DELETE", path+"/secrets/"+older["secretId"].(string), ""); a.status != http.StatusNoContent {
		t.Errorf("revoke: %d %s", a.status, a.body)
	}
	api.do("DELETE", path+"/secrets/"+older["secretId"].(string), "").problem(http.StatusNotFound, "Secret not found", "")
	api.do("DELETE", path+"/secrets/"+newest["secretId"].(string), "").problem(http.StatusConflict, "overlap of 0", "")
	api.do("POST", path+"/secrets", `{"overlap": 0}`).ok(http.StatusCreated)
	if n := len(api.do("GET", path+"/secrets", "").ok(http.StatusOK)["secrets"].([]any)); n != 1 {
		t.Errorf("%d secrets without an overlap", n)
	}
	for range posthorn.MaxSecrets - 1 {
		api.do("POST", path+"/secrets", `{}`).ok(http.StatusCreated)
	}
	api.do("POST", path+"/secrets", `{}`).problem(http.StatusConflict, "10 secrets", "secret")
}

func TestEd25519Secrets(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	a := api.do("POST", "/api/v1/repos/r1/webhooks", `{"url": "https://example.com/", "events": ["push"], "generateSecret": "ed25519"}`)
	created := a.ok(http.StatusCreated)
	api.matches("createWebhook", a)
	if key, _ := created["publicKey"].(string); !strings.HasPrefix(key, "whpk_") || strings.Contains(string(a.body), "whsk_") || created["secret"] != nil {
		t.Fatalf("%s", a.body)
	}
	path := "/api/v1/repos/r1/webhooks/" + created["webhookId"].(string)
	private := signature.GeneratePrivateKey()
	public, err := signature.PublicKey(private)
	if err != nil {
		t.Fatal(err)
	}
	own := api.do("POST", path+"/secrets", `{"secret": "`+private+`", "kind": "ed25519"}`).ok(http.StatusCreated)
	if own["kind"] != "ed25519" || own["publicKey"] != public || own["secret"] != nil {
		t.Errorf("%v", own)
	}
	api.do("POST", path+"/secrets", `{"secret": "s3cret"}`).ok(http.StatusCreated)
	a = api.do("GET", path+"/public-keys", "")
	api.matches("listPublicKeys", a)
	keys := a.ok(http.StatusOK)["publicKeys"].([]any)
	if len(keys) != 2 || strings.Contains(string(a.body), "whsk_") {
		t.Fatalf("%s", a.body)
	}
	if k := keys[0].(map[string]any); k["publicKey"] != public || k["secretId"] != own["secretId"] {
		t.Errorf("%s", a.body)
	}
	if k := keys[1].(map[string]any); k["publicKey"] != created["publicKey"] {
		t.Errorf("%s", a.body)
	}
	a = api.do("GET", "/api/v1/secret-keys", "")
	api.matches("getSecretKeys", a)
	if status := a.ok(http.StatusOK); status["keys"] != 1.0 || status["left"] != 0.0 || status["unreadable"] != 0.0 || len(status["first"].(string)) != 16 {
		t.Errorf("%s", a.body)
	}
}

func TestSecretsRefuse(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{})
	path := api.webhook(`{"url": "https://example.com/", "events": ["push"]}`)
	for body, field := range map[string]string{
		`{"kind": "rsa"}`:                         "kind",
		`{"kind": "ed25519", "secret": "s3cret"}`: "kind",
		`{"kind": "hmac", "secret": "` + signature.GeneratePrivateKey() + `"}`: "kind",
		`{"secret": "whsk_AAEC"}`: "secret",
		`{"secret": "whsec_!"}`:   "secret",
		`{"overlap": -1}`:         "overlap",
		`{"overlap": 31536001}`:   "overlap",
		`{"overlap": "1"}`:        "overlap",
		`{"secret": null}`:        "secret",
	} {
		api.do("POST", path+"/secrets", body).problem(http.StatusUnprocessableEntity, field+": ", field)
	}
	for _, body := range []string{`"generateSecret": "rsa"`, `"generateSecret": "hmac", "secret": "s3cret"`} {
		api.do("POST", "/api/v1/repos/r1/webhooks", `{"url": "https://example.com/", "events": ["push"], `+body+`}`).
			problem(http.StatusUnprocessableEntity, "generateSecret: ", "generateSecret")
	}
	for method, at := range map[string]string{"GET": "/secrets", "POST": "/secrets", "DELETE": "/secrets/s"} {
		body := map[string]string{"POST": "{}"}[method]
		api.do(method, strings.Replace(path, "r1", "r2", 1)+at, body).problem(http.StatusNotFound, "Webhook not found", "")
	}
	api.do("GET", path+"x/public-keys", "").problem(http.StatusNotFound, "Webhook not found", "")
}
