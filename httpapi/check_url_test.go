package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/musehub/posthorn"
)

func TestCheckURL(t *testing.T) {
	api := newTestAPI(t, posthorn.Config{}) // which opens 127.0.0.1
	for _, test := range []struct{ url, phase, rule string }{
		{"https://8.8.8.8/hook", "", ""},
		{"http://127.0.0.1:9/", "", ""},
		{"http://127.0.0.2/", "registration", "loopback 127.0.0.0/8"},
		{"file:///etc/passwd", "registration", ""},
		{"", "registration", ""},
	} {
		got := api.do("POST", "/api/v1/check-url", `{"url":"`+test.url+`"}`).ok(http.StatusOK)
		phase, _ := got["phase"].(string)
		rule, _ := got["rule"].(string)
		remedy, _ := got["remedy"].(string)
		if got["deliverable"] != (test.phase == "") || phase != test.phase || rule != test.rule {
			t.Errorf("%s: %v", test.url, got)
		}
		if strings.Contains(remedy, "--allow-target") != (test.rule != "") {
			t.Errorf("%s: %v", test.url, got)
		}
	}
}
