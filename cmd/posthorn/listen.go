package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/musehub/posthorn/signature"
)

type listenCmd struct {
	Port   uint16        `default:"9000" placeholder:"PORT" help:"Port on 127.0.0.1 (default ${default}). 0 takes a free one."`
	Secret []string      `sep:"none" placeholder:"SECRET" help:"Secret to check the signatures with, or public key whpk_…. Repeat it to accept any of several. Requests with a wrong one are answered with 401."`
	Status int           `default:"200" placeholder:"STATUS" help:"Status to answer with (default ${default})."`
	Fail   int           `default:"0" placeholder:"N" help:"Answer the first N requests of each event with 500."`
	Delay  time.Duration `default:"0s" placeholder:"DURATION" help:"How long to wait before each answer."`
	Brand  string        `default:"MuseHub" placeholder:"NAME" help:"Middle of the header names X-MuseHub-Event, X-MuseHub-Delivery and X-MuseHub-Signature (default ${default})."`
}

// Help is what --help shows below the summary.
func (*listenCmd) Help() string {
	return `Three terminals to try Posthorn out:

    posthorn serve --allow-target 127.0.0.1:9000
    posthorn listen --secret s3cret --fail 1
    posthorn webhooks create --repo demo --url http://127.0.0.1:9000/ --event '*' --secret s3cret
    posthorn dispatch --repo demo --type push '{"branch":"main"}'`
}

// Validate refuses what could not be sent.
func (c *listenCmd) Validate() error {
	if c.Status < 200 || c.Status > 599 {
		return errors.New("--status is between 200 and 599")
	}
	if c.Fail < 0 || c.Delay < 0 {
		return errors.New("--fail and --delay can't be negative")
	}
	return nil
}

// Run receives until a signal comes.
func (c *listenCmd) Run() error {
	var mu sync.Mutex // arrivals print a few lines each
	r := &receiver{brand: c.Brand, status: c.Status, failures: c.Fail, failWith: http.StatusInternalServerError, delay: c.Delay}
	if len(c.Secret) > 0 {
		verifier, err := signature.NewVerifier(c.Secret...)
		if err != nil {
			return err
		}
		verifier.Brand = c.Brand
		r.verifier = verifier
	}
	r.arrived = func(a arrival) {
		mu.Lock()
		defer mu.Unlock()
		c.show(a)
	}

	ctx, stop := untilSignal()
	defer stop()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", netip.AddrPortFrom(loopback, c.Port).String())
	if err != nil {
		return err
	}
	c.introduce(listener.Addr().String())
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (c *listenCmd) introduce(addr string) {
	option := ""
	if len(c.Secret) > 0 {
		option = " --secret …"
	}
	fmt.Printf(`Listening on http://%s/ until Ctrl-C. Posthorn delivers here when it is started and told to with:

    posthorn serve --allow-target %s
    posthorn webhooks create --repo demo --url http://%s/ --event '*'%s

`, addr, addr, addr, option)
}

func (c *listenCmd) show(a arrival) {
	verdict := "signature not checked: no --secret"
	switch {
	case a.wrong != nil:
		verdict = "NOT verified: " + strings.TrimPrefix(a.wrong.Error(), "signature: ")
	case len(c.Secret) > 0:
		verdict = "verified"
	}
	body := string(a.body[:min(len(a.body), 1000)])
	fmt.Printf("%s  %-12s  answered %d  %s\n    delivery    %s\n    webhook-id  %s\n    body        %s (%d bytes)\n",
		time.Now().Format(time.TimeOnly), printable(a.eventType), a.status, verdict,
		printable(a.deliveryID), printable(a.eventID), abbreviate(printable(body), 200), len(a.body))
}
