package bench

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// clientRequest asks the client process to post events for a while.
type clientRequest struct {
	URL         string // of the API's repos, with a slash at the end
	Token       string
	Repos       []string
	Batch       int // events in a post; 1: single ones, to another route
	Connections int // posts at a time
	Duration    time.Duration
}

type clientAnswer struct {
	Events int64 // that were accepted
}

// RunClient is the client process: it posts events to the REST API as the parent asks, until in ends.
func RunClient(in io.Reader, out io.Writer) error {
	return serveParent(in, out, func(q clientRequest) (clientAnswer, error) {
		c := &client{clientRequest: q, transport: &http.Transport{
			MaxConnsPerHost: q.Connections, MaxIdleConnsPerHost: q.Connections, DisableCompression: true,
		}}
		defer c.transport.CloseIdleConnections()
		return c.run(context.Background())
	})
}

type client struct {
	clientRequest
	transport *http.Transport
}

func (c *client) run(ctx context.Context) (clientAnswer, error) {
	var events atomic.Int64
	end := time.Now().Add(c.Duration)
	err := parallel(ctx, c.Connections, func(ctx context.Context, i int) error {
		var body bytes.Buffer
		for time.Now().Before(end) {
			if err := c.post(ctx, c.Repos[i%len(c.Repos)], &body); err != nil {
				return err
			}
			events.Add(int64(c.Batch))
			i += c.Connections
		}
		return nil
	})
	return clientAnswer{events.Load()}, err
}

// post posts to one repo. The buffer is used for the body.
func (c *client) post(ctx context.Context, repo string, body *bytes.Buffer) error {
	path := "/events"
	body.Reset()
	if c.Batch > 1 {
		path = "/events:batch"
		body.WriteString(`{"events":[`)
	}
	for i := range c.Batch {
		if i > 0 {
			body.WriteByte(',')
		}
		body.WriteString(`{"eventType":"` + measured + `","payload":`)
		body.Write(payload(time.Now()))
		body.WriteByte('}')
	}
	if c.Batch > 1 {
		body.WriteString(`]}`)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+repo+path, bytes.NewReader(body.Bytes()))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+c.Token)
	request.Header.Set("Content-Type", "application/json")
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return refused(c.Batch, response.StatusCode, string(text[:min(len(text), 500)]))
	}
	return nil
}
