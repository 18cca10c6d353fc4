package bench

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
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
		c := client{clientRequest: q}
		return c.run(context.Background())
	})
}

type client struct{ clientRequest }

func (c *client) run(ctx context.Context) (clientAnswer, error) {
	var events atomic.Int64
	end := time.Now().Add(c.Duration)
	err := parallel(ctx, c.Connections, func(ctx context.Context, i int) error {
		p, err := c.connect(ctx)
		if err != nil {
			return err
		}
		defer p.conn.Close()
		stop := context.AfterFunc(ctx, func() { p.conn.Close() }) // ends a post under way
		defer stop()
		for time.Now().Before(end) {
			if err := p.post(c.Repos[i%len(c.Repos)]); err != nil {
				return err
			}
			events.Add(int64(c.Batch))
			i += c.Connections
		}
		return nil
	})
	return clientAnswer{events.Load()}, err
}

// poster posts over one connection. It is as little of an HTTP client as will do, as load generators have it, because the
// client's work is not what is measured, but has the same processors.
type poster struct {
	*client
	conn net.Conn
	in   *bufio.Reader
	url  *url.URL
	out  bytes.Buffer
	body bytes.Buffer
}

func (c *client) connect(ctx context.Context) (*poster, error) {
	target, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", target.Host)
	if err != nil {
		return nil, err
	}
	return &poster{client: c, conn: conn, in: bufio.NewReader(conn), url: target}, nil
}

// post posts to one repo.
func (p *poster) post(repo string) error {
	route := "/events"
	p.body.Reset()
	if p.Batch > 1 {
		route = "/events:batch"
		p.body.WriteString(`{"events":[`)
	}
	for i := range p.Batch {
		if i > 0 {
			p.body.WriteByte(',')
		}
		p.body.WriteString(`{"eventType":"` + measured + `","payload":`)
		p.body.Write(payload(time.Now()))
		p.body.WriteByte('}')
	}
	if p.Batch > 1 {
		p.body.WriteString(`]}`)
	}
	p.out.Reset()
	for _, s := range []string{
		"POST ", p.url.Path, repo, route, " HTTP/1.1\r\nHost: ", p.url.Host, "\r\nAuthorization: Bearer ", p.Token,
		"\r\nContent-Type: application/json\r\nContent-Length: ", strconv.Itoa(p.body.Len()), "\r\n\r\n",
	} {
		p.out.WriteString(s)
	}
	p.out.Write(p.body.Bytes())
	if _, err := p.conn.Write(p.out.Bytes()); err != nil {
		return err
	}
	response, err := http.ReadResponse(p.in, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return refused(p.Batch, response.StatusCode, string(text[:min(len(text), 500)]))
	}
	return nil
}
