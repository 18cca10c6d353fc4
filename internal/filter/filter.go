// Package filter decides by an expression whether a webhook wants an event. Expressions are those of CEL, the Common Expression
// Language: they have no side effects and always end, and here they are limited in length and in cost.
package filter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/google/cel-go/cel"
)

const (
	// MaxLength is how many bytes an expression may have.
	MaxLength = 2048
	// maxCost is how much one evaluation may cost, in CEL's units: about one for each step, and for some bytes of a text. That is a
	// matter of milliseconds.
	maxCost = 100_000
)

// Filter is an expression that is ready to be evaluated. It is safe for concurrent use.
type Filter struct {
	program cel.Program
	err     error // why there is none
}

// Nothing is a filter that is true for nothing, because of an error.
func Nothing(err error) *Filter { return &Filter{err: err} }

// environment says what an expression can name. It is made once, when the first one is compiled.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("id", cel.StringType),
		cel.Variable("type", cel.StringType),
		cel.Variable("payload", cel.DynType),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserRecursionLimit(50),
		cel.ParserExpressionSizeLimit(MaxLength),
	)
})

// Compile reads an expression. Its error is fit for whoever wrote it.
func Compile(text string) (*Filter, error) {
	if len(text) > MaxLength {
		return nil, fmt.Errorf("it has %d bytes: at most %d", len(text), MaxLength)
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		return nil, errors.New("it can't be read: " + firstIssue(issues))
	}
	if out := ast.OutputType(); !out.IsExactType(cel.BoolType) && !out.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("it is a %s: it must be true or false, as in payload.branch == \"main\"", out)
	}
	program, err := env.Program(ast, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, errors.New("it can't be read: " + oneLine(err.Error()))
	}
	return &Filter{program: program}, nil
}

func firstIssue(issues *cel.Issues) string {
	if errs := issues.Errors(); len(errs) > 0 {
		return fmt.Sprintf("at character %d: %s", errs[0].Location.Column()+1, oneLine(errs[0].Message))
	}
	return oneLine(issues.Err().Error())
}

// oneLine shortens a message to what fits into an answer.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), 200)]
}

// Event is what an expression is about.
type Event struct {
	ID, Type string
	Payload  any // as Decode returns it
}

// Match reports whether the expression is true for the event. Its error says why that can't be told, as where a field is missing
// that it takes for granted, or it costs too much.
func (f *Filter) Match(e Event) (bool, error) {
	if f.err != nil {
		return false, f.err
	}
	result, _, err := f.program.Eval(map[string]any{"id": e.ID, "type": e.Type, "payload": e.Payload})
	if err != nil {
		return false, errors.New(oneLine(err.Error()))
	}
	matches, ok := result.Value().(bool)
	if !ok {
		return false, fmt.Errorf("it is a %s, neither true nor false", result.Type().TypeName())
	}
	return matches, nil
}

// Decode reads a payload. Whole numbers stay exact as far as 64 bits go.
func Decode(payload []byte) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil {
		return nil, err
	}
	return numbers(v), nil
}

func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		n, _ := v.Float64() // infinite where it is too large
		return n
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for key := range v {
			v[key] = numbers(v[key])
		}
	}
	return v
}
