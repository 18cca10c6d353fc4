package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// A child is a process of this program that plays another part, so that its work isn't counted as the measured one's. It
// takes requests on its standard input, one JSON value after the other, answers each on its standard output, and ends when
// the input does: none outlives a parent that was killed.
type child struct {
	mu  sync.Mutex // one call at a time
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

// answer is what a child says to a request.
type answer[T any] struct {
	Value T
	Error string
}

func startChild(cmd *exec.Cmd) (*child, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{cmd: cmd, in: in, enc: json.NewEncoder(in), dec: json.NewDecoder(bufio.NewReader(out))}, nil
}

// call asks a child and waits for its answer. When ctx ends first, the child is killed.
func call[T any](ctx context.Context, c *child, request any) (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })()
	var a answer[T]
	err := c.enc.Encode(request)
	if err == nil {
		err = c.dec.Decode(&a)
	}
	switch {
	case ctx.Err() != nil:
		return a.Value, ctx.Err()
	case err != nil:
		return a.Value, fmt.Errorf("the process that plays %s ended early: %w", c.cmd.Args[len(c.cmd.Args)-1], err)
	case a.Error != "":
		return a.Value, errors.New(a.Error)
	}
	return a.Value, nil
}

// stop has the child end and waits for that.
func (c *child) stop() {
	_ = c.in.Close()
	defer time.AfterFunc(5*time.Second, func() { _ = c.cmd.Process.Kill() }).Stop()
	_ = c.cmd.Wait() // how it ended doesn't matter any more
}

// serveParent is the child's side: it answers requests until there are no more.
func serveParent[Request, Answer any](in io.Reader, out io.Writer, handle func(Request) (Answer, error)) error {
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var request Request
		if err := dec.Decode(&request); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read what the parent asks: %w", err)
		}
		var a answer[Answer]
		var err error
		if a.Value, err = handle(request); err != nil {
			a.Error = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return fmt.Errorf("answer the parent: %w", err)
		}
	}
}
