package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/musehub/posthorn/signature"
)

// bodyArg is the argument of the commands that read a body.
type bodyArg struct {
	File string `arg:"" optional:"" default:"-" help:"File with the body, or - for standard input (default ${default})."`
}

func (a bodyArg) read() ([]byte, error) {
	if a.File == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(a.File)
}

// brandFlag is the flag that names the header of MuseHub's own signature.
type brandFlag struct {
	Brand string `default:"MuseHub" placeholder:"NAME" help:"Middle of the header name X-MuseHub-Signature (default ${default})."`
}

func (f brandFlag) header() string { return "X-" + f.Brand + "-Signature" }

type signCmd struct {
	Secret    []string `required:"" sep:"none" placeholder:"SECRET" help:"Secret to sign with, or Ed25519 key whsk_…. Repeat it for one that is being replaced, the newest first."`
	ID        string   `name:"id" env:"-" placeholder:"ID" help:"The webhook-id (default a random one)."`
	Timestamp moment   `env:"-" placeholder:"TIME" help:"The webhook-timestamp: a time, Unix seconds, or a duration ago such as 1h (default now)."`
	brandFlag
	bodyArg
}

// Help is what --help shows below the summary.
func (*signCmd) Help() string {
	return `Prints the headers that a delivery of the body would have, as curl takes them:

    posthorn sign --secret s3cret body.json > headers
    curl -H @headers -H 'Content-Type: application/json' --data-binary @body.json http://127.0.0.1:9000/

The body is signed as it is, to the last byte, a final line break included. Better give the secret as POSTHORN_SECRET: on
the command line it shows in the list of processes.`
}

// Validate refuses an ID that would make the signature ambiguous.
func (c *signCmd) Validate() error {
	if strings.Contains(c.ID, ".") {
		return errors.New("--id can't contain a full stop: it separates the parts of what is signed")
	}
	return nil
}

// Run prints the headers.
func (c *signCmd) Run() error {
	signer, err := signature.NewSigner(c.Secret...)
	if err != nil {
		return err
	}
	body, err := c.read()
	if err != nil {
		return err
	}
	if c.ID == "" {
		c.ID = rand.Text()
	}
	if c.Timestamp.IsZero() {
		c.Timestamp.Time = time.Now()
	}
	fmt.Printf("%s: %s\n%s: %s\n%s: %s\n",
		strings.ToLower(signature.HeaderID), c.ID,
		strings.ToLower(signature.HeaderTimestamp), strconv.FormatInt(c.Timestamp.Unix(), 10),
		strings.ToLower(signature.HeaderSignature), signer.Standard(c.ID, c.Timestamp.Time, body))
	if own := signer.Body(body); own != "" { // Ed25519 keys don't sign that
		fmt.Printf("%s: %s\n", c.header(), own)
	}
	return nil
}
