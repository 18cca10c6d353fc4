package httpapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

// problem is the body of every error: the problem details of RFC 9457.
type problem struct {
	Title  string `json:"title" doc:"The status in words"`
	Status int    `json:"status" doc:"The HTTP status" example:"422"`
	Detail string `json:"detail" doc:"What was wrong and what to do about it, for people" example:"url: has no host"`
	Field  string `json:"field,omitempty" doc:"The field or parameter at fault, if it is one" example:"url"`

	header http.Header
}

// statuses maps what the dispatcher's errors say to what HTTP says. It is the only place that does.
var statuses = map[posthorn.Code]int{
	posthorn.CodeUnauthorized: http.StatusUnauthorized,
	posthorn.CodeInvalid:      http.StatusUnprocessableEntity,
	posthorn.CodeNotFound:     http.StatusNotFound,
	posthorn.CodeConflict:     http.StatusConflict,
	posthorn.CodeTooLarge:     http.StatusRequestEntityTooLarge,
	posthorn.CodeUnavailable:  http.StatusServiceUnavailable,
	posthorn.CodeUncertain:    http.StatusServiceUnavailable,
	posthorn.CodeLoop:         http.StatusLoopDetected,
	posthorn.CodeInternal:     http.StatusInternalServerError,
}

func newProblem(status int, format string, args ...any) *problem {
	return &problem{Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

func internalError() *problem {
	return newProblem(http.StatusInternalServerError, "an internal error: its cause is in the server's log")
}

// invalid is the error for a field or parameter that this package itself finds wrong.
func invalid(field, format string, args ...any) error {
	return &posthorn.Error{Code: posthorn.CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

// problemFor says what to answer for an error. What is internal stays out of the answer.
func problemFor(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	e, ok := errors.AsType[*posthorn.Error](err)
	if !ok {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return newProblem(http.StatusServiceUnavailable, "the request ended before its answer was there")
		}
		return internalError()
	}
	status, ok := statuses[e.Code]
	if !ok || status == http.StatusInternalServerError {
		return internalError()
	}
	p := newProblem(status, "%s", e.Public())
	p.Field = e.Field
	// Not where it may have been done already: clients take the header as leave to do it again by themselves.
	if e.Code == posthorn.CodeUnavailable {
		p.header = http.Header{"Retry-After": {"1"}}
	}
	return p
}

// repeatable is the error of posting events that all have an ID of the caller's: the same again does nothing twice, even where nobody
// knows what became of them.
func repeatable(err error) error {
	if posthorn.ErrorCode(err) != posthorn.CodeUncertain && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	p := problemFor(err)
	p.header = http.Header{"Retry-After": {"1"}}
	return p
}

// problemForModel says what to answer where huma found something wrong by itself. The detail has it all; the values at
// fault, which may be secrets, are not sent back.
func problemForModel(m *huma.ErrorModel) *problem {
	p := newProblem(m.Status, "%s", m.Detail)
	var details []string
	for _, e := range m.Errors {
		detail := e.Message
		if _, name, ok := strings.Cut(e.Location, "."); ok { // "query.limit"
			detail = name + ": " + detail
			if p.Field == "" {
				p.Field = name
			}
		}
		details = append(details, detail)
	}
	if len(details) > 0 {
		p.Detail = strings.Join(details, "; ")
	}
	return p
}

// write answers a request with the problem.
func (p *problem) write(w http.ResponseWriter) {
	maps.Copy(w.Header(), p.header)
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = huma.DefaultJSONFormat.Marshal(w, p) // fails only if the client is gone
}

// What huma asks of an error that a handler returns.

func (p *problem) Error() string             { return p.Detail }
func (p *problem) GetStatus() int            { return p.Status }
func (p *problem) GetHeaders() http.Header   { return p.header }
func (p *problem) ContentType(string) string { return "application/problem+json" }

// ErrorDetail is for problems that are found while the request is read: huma collects those.
func (p *problem) ErrorDetail() *huma.ErrorDetail {
	if p.Field == "" {
		return &huma.ErrorDetail{Message: p.Detail}
	}
	return &huma.ErrorDetail{Message: strings.TrimPrefix(p.Detail, p.Field+": "), Location: "body." + p.Field}
}
