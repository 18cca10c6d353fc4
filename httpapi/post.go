package httpapi

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/musehub/posthorn"
)

// postInput is what is posted to a repo.
type postInput[T any] struct {
	RepoID      string `path:"repoId"`
	TraceParent string `header:"traceparent" doc:"W3C Trace Context: sent on to the receivers. One that isn't valid is left out"`
	TraceState  string `header:"tracestate" doc:"Goes with traceparent"`
	WebhookID   string `header:"webhook-id" doc:"Pass on that of the delivery that has led to this request, and its Posthorn-Depth, so that a loop is noticed"`
	Depth       string `header:"Posthorn-Depth" doc:"How many deliveries had led to that delivery's event. After 5 the answer is 508"`
	jsonBody[T]
}

// attributes are those of the events, as far as headers tell them. What a delivery has led to is one deeper than its event.
func (in *postInput[T]) attributes() posthorn.Attributes {
	a := posthorn.Attributes{TraceParent: in.TraceParent, TraceState: in.TraceState}
	if in.WebhookID != "" || in.Depth != "" {
		depth, err := strconv.ParseUint(in.Depth, 10, 16)
		if err != nil {
			depth = 0
		}
		a.Depth = int(depth) + 1
	}
	return a
}

// postOutput is the answer to it.
type postOutput[T any] struct {
	Status int
	Body   T
}

// postOperation is operation for what is posted a thousand times a second. huma only describes it: its reflection would
// cost more than all else that is done here for a small event. The handler may not keep the input's bytes.
func postOperation[I, O any](s *server, op huma.Operation, need posthorn.Scope, handler func(context.Context, *postInput[I]) (*postOutput[O], error)) {
	complete[postInput[I]](s, &op, need)
	huma.Register(unrouted{s.api}, op, handler)
	s.mux.HandleFunc(op.Method+" "+op.Path, func(w http.ResponseWriter, r *http.Request) {
		buffer := bodyBuffers.Get().(*[]byte) //nolint:forcetypeassert // nothing else is in it
		out, err := post(s, w, r, need, op.MaxBodyBytes, buffer, handler)
		if err != nil {
			s.failed(r.Context(), op.OperationID, err).write(w)
		} else {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(out.Status)
			_ = huma.DefaultJSONFormat.Marshal(w, &out.Body) // fails only if the client is gone
		}
		if cap(*buffer) <= maxBody {
			bodyBuffers.Put(buffer)
		}
	})
}

// post does what huma does for other operations, in the same order: it checks the caller and the query, reads the body, and
// calls the handler. The body is read into the buffer.
func post[I, O any](
	s *server, w http.ResponseWriter, r *http.Request, need posthorn.Scope, limit int64, buffer *[]byte,
	handler func(context.Context, *postInput[I]) (*postOutput[O], error),
) (*postOutput[O], error) {
	ctx, err := s.permits(r, need)
	if err != nil {
		return nil, err
	}
	actor := posthorn.ActorOf(ctx)
	if err := s.shares.take(actor); err != nil {
		return nil, err
	}
	defer s.shares.give(actor)
	query, p := parseQuery(r)
	if p != nil {
		return nil, p
	}
	if len(query) > 0 {
		return nil, invalid(slices.Min(slices.Collect(maps.Keys(query))), "unknown query parameter")
	}
	size := r.ContentLength
	if size < 0 || size > limit { // as much as is read
		size = limit
	}
	if size > maxBody {
		if err := s.memory.take(actor, size); err != nil {
			return nil, err
		}
		defer s.memory.give(actor, size)
	}
	raw, err := readBody(w, r, limit, *buffer)
	if err != nil {
		return nil, err
	}
	*buffer = raw
	in := postInput[I]{
		RepoID: r.PathValue("repoId"), TraceParent: r.Header.Get("traceparent"), TraceState: strings.Join(r.Header["Tracestate"], ","),
		WebhookID: r.Header.Get("webhook-id"), Depth: r.Header.Get("Posthorn-Depth"),
	}
	if in.body, err = decode[I](raw); err != nil {
		return nil, err
	}
	return handler(ctx, &in)
}

// bodyBuffers holds the memory of bodies that have been read, none of more than maxBody bytes.
var bodyBuffers = sync.Pool{New: func() any { return new([]byte) }}

// unrouted is an API whose operations are in its document, but whose routes nobody asks.
type unrouted struct{ huma.API }

// Adapter takes the routes.
func (unrouted) Adapter() huma.Adapter { return humago.NewAdapter(http.NewServeMux(), "") }
