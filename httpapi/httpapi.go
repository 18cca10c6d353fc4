// Package httpapi serves a [posthorn.Dispatcher] as a REST API in JSON.
//
//	api, err := httpapi.New(d, httpapi.Config{Token: token})
//	…
//	http.ListenAndServe("localhost:8080", api)
//
// Everything is under /api/v1 and needs the bearer token. Beside it, open to all, are /healthz (the process lives),
// /readyz (it takes work), /openapi.json (the API's description in OpenAPI 3.1) and /docs (the same to read). That
// description is made from the code and is the reference for each route.
//
// What holds for all routes:
//
//   - Names are in camelCase, times are RFC 3339 in UTC with exactly six digits of a second's fraction.
//   - IDs in a path are escaped, a slash as %2F. (A repo whose ID is nothing but a slash can't be addressed: the path
//     looks like one that ends early to [http.ServeMux].)
//   - A payload is passed on as the bytes that came in, to the last one, and shown as a string that holds them.
//   - Bodies are read strictly: an unknown or repeated field, null and text that isn't UTF-8 are errors, so that nothing
//     that a client meant is dropped in silence. The same goes for unknown and repeated parameters of a query.
//   - Each error is an application/problem+json (RFC 9457) with title, status and detail. The detail names the input at
//     fault, and so does the member field where there is one. A defect of the server is logged and doesn't show.
//   - A listing goes on where its nextCursor says, until that is null. A cursor belongs to the listing that gave it out,
//     filters included.
//   - A secret never shows: not a webhook's, but for the answer to who has it generated, not the signatures of a delivery, and of the headers that a receiver sent,
//     not those whose names speak of cookies, tokens, keys and the like.
//
// Timeouts are the [http.Server]'s part. Its ReadTimeout counts until all of the request is in, its WriteTimeout until the client has the
// answer; what has none after nine tenths of that is answered 503, so that nothing is done for nobody. The handler lifts the latter from a
// redelivery, which waits for the end of its run, and gives a poll five minutes.
package httpapi

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
)

// Config configures the handler that [New] makes.
type Config struct {
	// Token is the bearer token of the administrator: who has it may do everything in every repo. It consists of visible
	// ASCII characters. Without one, and without an Authorizer, New fails. The tokens that
	// [posthorn.Dispatcher.CreateToken] makes are good beside it.
	Token string
	// Authorizer is asked about every request under /api that has none of these tokens, for hosts with sessions or tokens of
	// their own. Defaults to none.
	Authorizer Authorizer
	// MaxRequests is how many requests under /api may be under way at once, and as many redeliveries and polls beside them, which may
	// wait for minutes; more are answered 503. Defaults to 1024.
	MaxRequests int
	// MaxMemory is how many bytes the bodies that are being received, and the answers with payloads that are being sent, may take
	// together, without those that take up to 64 KiB: 503 with Retry-After beyond. Such an answer takes four times the size of its payloads, and
	// trying a filter 16 MiB, or twice the largest payload where that is more. Who has one token has half of it: 429. Defaults to 256 MiB.
	MaxMemory int64
	// MaxEventsPerSecondPerToken and MaxEventsPerSecondPerRepo are how many events may be posted here in a second by who has
	// one token, and to one repo; more are answered 429. A batch counts for each of its events. Default to no limit.
	MaxEventsPerSecondPerToken, MaxEventsPerSecondPerRepo int
	// Logger takes panics and the causes of internal errors. Defaults to slog.Default().
	Logger *slog.Logger
	// Version is the version that the API's description states. Defaults to "devel".
	Version string
}

// New returns the REST API of a dispatcher. It fails when the configuration is wrong, with [posthorn.CodeInvalid].
//
// The handler may be used by any number of goroutines, and before the dispatcher is started and after it is stopped:
// what needs a running one answers 503 then. It expects the paths that the package comment names, at the root of a host.
func New(d *posthorn.Dispatcher, cfg Config) (http.Handler, error) {
	if cfg.Token == "" && cfg.Authorizer == nil {
		return nil, posthorn.Errorf(posthorn.CodeInvalid, "Config.Token is empty: the API needs a token to be protected by")
	}
	admin, err := newAdminToken(cfg.Token)
	if err != nil {
		return nil, err
	}
	if err := checkLimits(&cfg); err != nil {
		return nil, err
	}
	s := &server{
		dispatcher: d, admin: admin, authorizer: cfg.Authorizer, log: cfg.Logger, mux: http.NewServeMux(),
		slots: make(slots, cmp.Or(cfg.MaxRequests, defaultMaxRequests)), waiting: make(slots, cmp.Or(cfg.MaxRequests, defaultMaxRequests)),
		shares: shares{most: max(1, cmp.Or(cfg.MaxRequests, defaultMaxRequests)/2)}, memory: memory{most: cmp.Or(cfg.MaxMemory, defaultMaxMemory)},
		rates: eventRates{perToken: cfg.MaxEventsPerSecondPerToken, perRepo: cfg.MaxEventsPerSecondPerRepo},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	version := cfg.Version
	if version == "" {
		version = "devel"
	}
	s.api = newAPI(s.mux, version)
	s.registerWebhooks()
	s.registerSecrets()
	s.registerDeliveries()
	s.registerReplays()
	s.registerEvents()
	s.registerPoll()
	s.registerAccess()
	if err := s.serveDocument(); err != nil {
		return nil, err
	}
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeStatus(w, "alive") })
	s.mux.HandleFunc("GET /readyz", s.ready)
	return s, nil
}

// server is the handler: the routes, and what surrounds them all.
type server struct {
	dispatcher *posthorn.Dispatcher
	admin      adminToken
	authorizer Authorizer // may be nil
	slots      slots
	waiting    slots  // for redeliveries and polls, which may wait for long, so that the others always get through
	shares     shares // of both
	memory     memory
	rates      eventRates
	log        *slog.Logger
	mux        *http.ServeMux
	api        huma.API // whose operations are on mux
}

// ServeHTTP answers one request. A panic below becomes a 500 and a log line.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	waits := strings.HasSuffix(r.URL.Path, "/redeliver") || strings.HasSuffix(r.URL.Path, "/poll")
	if limit := answerTime(r); limit > 0 && !waits {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		r = r.WithContext(ctx)
	}
	answer := &response{ResponseWriter: w, request: r}
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		if cause == http.ErrAbortHandler { //nolint:errorlint // a panic's value, compared as net/http does
			panic(cause)
		}
		s.log.ErrorContext(r.Context(), "panic while answering a request",
			"method", r.Method, "path", r.URL.Path, "panic", cause, "stack", string(debug.Stack()))
		if answer.started {
			panic(http.ErrAbortHandler) // breaks the connection: half an answer must not look like a whole one
		}
		internalError().write(w)
	}()
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	if strings.HasPrefix(r.URL.Path, base+"/") {
		slots := s.slots
		if waits {
			slots = s.waiting
		}
		if p := slots.take(); p != nil {
			p.write(w)
			return
		}
		defer slots.give()
	}
	s.mux.ServeHTTP(answer, r)
}

// answerTime returns for how long the work for a request may go on, so that its answer, or what there is to say in its place, is sent
// before the server's limit for that; zero if it has none.
func answerTime(r *http.Request) time.Duration {
	server, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok || server == nil {
		return 0
	}
	return server.WriteTimeout / 10 * 9
}

func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	if err := s.dispatcher.Ready(); err != nil {
		problemFor(err).write(w)
		return
	}
	writeStatus(w, "ready")
}

func writeStatus(w http.ResponseWriter, status string) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"status":"` + status + `"}` + "\n"))
}

// response knows whether the answer has started, and puts a problem in the place of what the ServeMux answers by itself:
// unknown paths, wrong methods, and redirects to the clean form of a path, which the API has no use for.
type response struct {
	http.ResponseWriter
	request  *http.Request
	started  bool // the status went out
	replaced bool // by a problem: what the ServeMux writes is dropped
}

// WriteHeader sends the status, and with it all of the answer if it isn't a route that gives it.
func (w *response) WriteHeader(status int) {
	if w.started {
		return
	}
	w.started = true
	redirect := status >= 300 && status < 400 // routes of ours never do that
	if w.request.Pattern != "" && !redirect {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	w.replaced = true
	w.Header().Del("Location")
	var p *problem
	switch status {
	case http.StatusMethodNotAllowed:
		p = newProblem(status, "%s is not allowed here, but %s", w.request.Method, w.Header().Get("Allow"))
	case http.StatusBadRequest:
		p = newProblem(status, "the request names no path")
	default:
		p = newProblem(http.StatusNotFound, "there is nothing at this path: %.200q", w.request.URL.Path)
	}
	p.write(w.ResponseWriter)
}

// Write sends a part of the body.
func (w *response) Write(b []byte) (int, error) {
	if w.replaced {
		return len(b), nil
	}
	w.started = true
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
