package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"os"
	"strings"
	"time"

	"github.com/musehub/posthorn/signature"
)

type verifyCmd struct {
	Secret    []string      `required:"" sep:"none" placeholder:"SECRET" help:"Secret to check with, or public key whpk_…. Repeat it to accept any of several."`
	Header    []string      `short:"H" env:"-" required:"" sep:"none" placeholder:"'NAME: VALUE'" help:"Header of the request, or @FILE with one on each line. Can be repeated; those without a part in the signature are ignored."`
	Tolerance time.Duration `env:"-" default:"5m" placeholder:"DURATION" help:"How far the webhook-timestamp may be from now (default ${default})."`
	brandFlag
	bodyArg
}

// Help is what --help shows below the summary.
func (*verifyCmd) Help() string {
	return `Checks each signature that the headers carry, says what is wrong, and fails unless all are right.

    posthorn verify --secret s3cret -H 'X-MuseHub-Signature: sha256=…' body.json
    posthorn sign --secret s3cret body.json > headers; posthorn verify --secret s3cret -H @headers body.json

The body must be what was received, to the last byte. Better give the secret as POSTHORN_SECRET: on the command line it
shows in the list of processes.`
}

// Validate refuses what could not be checked.
func (c *verifyCmd) Validate() error {
	if c.Tolerance <= 0 {
		return errors.New("--tolerance must be more than zero")
	}
	return nil
}

// Run checks the signatures.
func (c *verifyCmd) Run() error {
	header, err := c.headers()
	if err != nil {
		return err
	}
	body, err := c.read()
	if err != nil {
		return err
	}
	verifier, err := signature.NewVerifier(c.Secret...)
	if err != nil {
		return err
	}
	verifier.Tolerance, verifier.Brand = c.Tolerance, c.Brand

	// Each scheme is checked by itself, with the other's header out of sight.
	standard, own := header.Clone(), header.Clone()
	standard.Del(c.header())
	own.Del(signature.HeaderSignature)
	schemes := []struct {
		name   string
		header http.Header
	}{{signature.HeaderSignature, standard}, {c.header(), own}}

	checked, wrong := 0, 0
	for _, scheme := range schemes {
		if header.Get(scheme.name) == "" {
			continue
		}
		checked++
		verdict := "valid"
		if err := c.diagnose(verifier, scheme.header, body); err != nil {
			wrong++
			verdict = strings.TrimPrefix(err.Error(), "signature: ")
		}
		fmt.Printf("%s: %s\n", strings.ToLower(scheme.name), verdict)
	}
	switch {
	case checked == 0:
		return fmt.Errorf("no signature: neither %s nor %s is among the headers", strings.ToLower(signature.HeaderSignature), c.header())
	case wrong > 0:
		return errors.New("NOT verified")
	}
	return nil
}

// diagnose says what is wrong with a request, and more than a receiver would tell a sender.
func (c *verifyCmd) diagnose(v *signature.Verifier, header http.Header, body []byte) error {
	err := v.Verify(header, body)
	var compact bytes.Buffer
	_ = json.Compact(&compact, body) // empty where it is no JSON
	switch {
	case errors.Is(err, signature.ErrTooOld), errors.Is(err, signature.ErrTooNew):
		return fmt.Errorf("%w: it is %s, and the tolerance %v", err, header.Get(signature.HeaderTimestamp), v.Tolerance)
	case !errors.Is(err, signature.ErrMismatch):
		return err
	case v.Verify(header, append(bytes.Clone(body), '\n')) == nil:
		return fmt.Errorf("%w, but with a line break at the end of the body it would", err)
	case v.Verify(header, bytes.TrimRight(body, "\r\n")) == nil:
		return fmt.Errorf("%w, but without the line break at the end of the body it would", err)
	case v.Verify(header, compact.Bytes()) == nil:
		return fmt.Errorf("%w, but it would if the body's JSON were compact: something on the way has written it anew, and the exact bytes count", err)
	}
	if hint := c.otherSecret(header, body); hint != "" {
		return fmt.Errorf("%w, but it would %s", err, hint)
	}
	return fmt.Errorf("%w: it was made with another secret, or of another body or header than these", err)
}

// otherSecret says with which other reading of a secret the signature would be right.
func (c *verifyCmd) otherSecret(header http.Header, body []byte) string {
	for _, secret := range c.Secret {
		for _, other := range []struct{ secret, hint string }{
			{strings.TrimSpace(secret), "with the secret without the space around it"},
			{"whsec_" + secret, "with the secret as base64, which is whsec_ and the same"},
			{strings.TrimPrefix(secret, "whsec_"), "with the secret as text, without whsec_: the sender has not decoded it"},
		} {
			v, err := signature.NewVerifier(other.secret)
			if err != nil || other.secret == secret {
				continue
			}
			v.Tolerance, v.Brand = c.Tolerance, c.Brand
			if v.Verify(header, body) == nil {
				return other.hint
			}
		}
	}
	return ""
}

// headers parses the headers that were given.
func (c *verifyCmd) headers() (http.Header, error) {
	header := http.Header{}
	for _, given := range c.Header {
		if file, ok := strings.CutPrefix(given, "@"); ok {
			b, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			given = string(b)
		}
		for line := range strings.Lines(given) {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			name, value, ok := strings.Cut(line, ":")
			if !ok || strings.TrimSpace(name) == "" {
				return nil, fmt.Errorf("%q is not a header: it has the form 'Name: value'", line)
			}
			header.Add(textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)), strings.TrimSpace(value))
		}
	}
	return header, nil
}
