package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"
)

// webhookOptions is the flags for what a webhook can have in place of what the server has. Their names in the API are those in
// camelCase.
type webhookOptions struct {
	RetryPolicy     *string        `env:"-" placeholder:"POLICY" help:"When a failing delivery is attempted again: musehub, standard, none, or delays such as 5s,1m,2h±20%%. '': as the server says."`
	FinalStatuses   *string        `env:"-" placeholder:"STATUS,…" help:"Statuses after which nothing is tried again, such as 400-407,422. '': as the server says."`
	Timeout         *time.Duration `env:"-" placeholder:"DURATION" help:"How long one attempt may take, from 1s to 1m. 0s: as the server says."`
	MaxInFlight     *int           `env:"-" placeholder:"N" help:"Requests that may be under way at once, within what the server allows. 0: just that."`
	Filter          *string        `env:"-" placeholder:"EXPRESSION" help:"Which of the events it wants, in CEL on id, type and payload, such as payload.branch == \"main\"; see posthorn filter-test. '': all."`
	Ordering        *string        `env:"-" placeholder:"ORDER" help:"strict: one event after the other, as they were dispatched. key: so for each ordering key. '': no order."`
	KeepInactive    *bool          `name:"keep-while-inactive" negatable:"" env:"-" help:"Keep the events that are dispatched while it is inactive, and send them once it is active again."`
	MaxPerSecond    *int           `env:"-" placeholder:"N" help:"Requests that may start in a second, evenly spread. 0: any number."`
	Header          []string       `sep:"none" env:"-" placeholder:"NAME: VALUE" help:"Header of its own that is sent with each request; the value is stored encrypted. Can be repeated; replaces those that there were. NAME: *** keeps the value that there is."`
	GitHubSignature *bool          `name:"github-signature" negatable:"" env:"-" help:"Send X-Hub-Signature-256, too, for receivers built for GitHub."`
	IdempotencyKey  *bool          `negatable:"" env:"-" help:"Send the event's ID as Idempotency-Key, too."`
	webhookTLS
}

// add adds what was given to a body.
func (o *webhookOptions) add(body map[string]any) error {
	given(body, "retryPolicy", o.RetryPolicy)
	given(body, "finalStatuses", o.FinalStatuses)
	given(body, "maxInFlight", o.MaxInFlight)
	given(body, "maxPerSecond", o.MaxPerSecond)
	given(body, "filter", o.Filter)
	given(body, "ordering", o.Ordering)
	given(body, "keepWhileInactive", o.KeepInactive)
	given(body, "githubSignature", o.GitHubSignature)
	given(body, "idempotencyKey", o.IdempotencyKey)
	if o.Header != nil {
		headers := map[string]string{}
		for _, h := range o.Header {
			name, value, ok := strings.Cut(h, ":")
			if !ok {
				return errors.New("--header has to be NAME: VALUE")
			}
			headers[name] = strings.TrimSpace(value)
		}
		body["headers"] = headers
	}
	if o.Timeout != nil {
		body["timeout"] = wholeSeconds(*o.Timeout)
	}
	settings, err := o.webhookTLS.body()
	if settings != nil {
		body["tls"] = settings
	}
	return err
}

// wholeSeconds rounds a duration away from zero to the seconds that the API takes. Zero often means something of its own, such as
// at once, so nothing else becomes it; and what is negative stays so, for the server to refuse it.
func wholeSeconds(d time.Duration) int64 {
	s := d.Seconds()
	return int64(math.Copysign(math.Ceil(math.Abs(s)), s))
}

// given adds a field to a body if there is a value.
func given[T any](body map[string]any, name string, value *T) {
	if value != nil {
		body[name] = *value
	}
}

// webhookTLS is the flags that say what a webhook's connections have of their own.
type webhookTLS struct {
	TLSMinVersion string `name:"tls-min-version" env:"-" enum:",1.2,1.3" default:"" placeholder:"VERSION" help:"Least version of TLS: 1.2 or 1.3. It can't go below the server's."`
	TLSCAFile     string `name:"tls-ca-file" env:"-" placeholder:"FILE" help:"Certificates in PEM of the authorities to trust, instead of those that the server trusts."`
	TLSClientCert string `name:"tls-client-cert" env:"-" placeholder:"FILE" help:"Certificate in PEM, with those between it and its root, for a receiver that asks for one."`
	TLSClientKey  string `name:"tls-client-key" env:"-" placeholder:"FILE" help:"The key of that certificate in PEM. The server keeps it encrypted."`
}

// tlsBody is the settings as the API takes them.
type tlsBody map[string]string

// body reads the files. Without any flag it is nil.
func (f *webhookTLS) body() (tlsBody, error) {
	var body tlsBody
	set := func(name, value string) {
		if body == nil {
			body = tlsBody{}
		}
		body[name] = value
	}
	if f.TLSMinVersion != "" {
		set("minVersion", f.TLSMinVersion)
	}
	for _, file := range []struct{ flag, path, name string }{
		{"tls-ca-file", f.TLSCAFile, "rootCAs"}, {"tls-client-cert", f.TLSClientCert, "certificate"}, {"tls-client-key", f.TLSClientKey, "key"},
	} {
		if file.path == "" {
			continue
		}
		content, err := os.ReadFile(file.path)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", file.flag, err)
		}
		set(file.name, string(content))
	}
	return body, nil
}

// subjects says whose the certificates in PEM are.
func subjects(text string) string {
	var names []string
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return strings.Join(names, "; ")
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			names = append(names, cert.Subject.String())
		}
	}
}
