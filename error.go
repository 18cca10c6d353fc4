package posthorn

import (
	"errors"
	"fmt"
	"strings"
)

// Code says what kind of error an [Error] is. The REST API maps each code to one HTTP status.
type Code string

// The codes. A program can rely on them; the messages beside them are for people and may change.
const (
	CodeInvalid      Code = "invalid"      // the caller's input is wrong; Field names where
	CodeNotFound     Code = "not_found"    // there is no such thing in that repo
	CodeConflict     Code = "conflict"     // what is stored contradicts the request
	CodeTooLarge     Code = "too_large"    // a limit on size was exceeded
	CodeUnavailable  Code = "unavailable"  // not now: not started, stopping, or the store can't be written
	CodeUnauthorized Code = "unauthorized" // it is not known who asks
	CodeUncertain    Code = "uncertain"    // the store was lost while it committed: it may have been done or not
	CodeLoop         Code = "loop"         // webhooks lead back to where they come from
	CodeInternal     Code = "internal"     // a defect in Posthorn or in the store
)

// Error is an error with a code. Every error that a [Dispatcher] or a [Store] returns for a reason other than a
// cancelled context is one, or wraps one.
type Error struct {
	Code    Code
	Field   string // the input at fault, by its name in the REST API ("events", "url"), or empty
	Message string // what was wrong and what to do about it, for whoever made the call, over the network too
	// Err is the cause, for errors.Is and errors.As, or nil. Where its text is not in the message, that is because it is for
	// the operator alone: it may name hosts and users.
	Err error
}

// Error returns the whole text, for the log.
func (e *Error) Error() string {
	text := e.Public()
	if e.Err != nil && !strings.Contains(e.Message, e.Err.Error()) {
		text += ": " + e.Err.Error()
	}
	return text
}

// Public returns the part of the text that may be shown to anyone: the message, behind the field if there is one.
func (e *Error) Public() string {
	if e.Field != "" {
		return e.Field + ": " + e.Message
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an [*Error] with the given code. A %w verb names the cause, as with [fmt.Errorf], and makes its text public.
func Errorf(code Code, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// ErrorCode returns the code of the first [Error] in err's chain, [CodeInternal] where there is none, and "" for nil.
func ErrorCode(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

func invalid(field, format string, args ...any) error {
	return &Error{Code: CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

func tooLarge(field, format string, args ...any) error {
	return &Error{Code: CodeTooLarge, Field: field, Message: fmt.Sprintf(format, args...)}
}
