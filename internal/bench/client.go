package bench

import (
	"errors"
	"io"
)

// RunClient is the client process.
func RunClient(io.Reader, io.Writer) error { return errors.New("not yet") }
