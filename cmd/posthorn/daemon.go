package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"

	"golang.org/x/net/netutil"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/httpapi"
)

type daemonConfig struct {
	listen   string
	data     string // the folder
	database database
	token    string // empty: the data folder's
	limits   apiLimits
	access   httpapi.Authorizer // beside tokens of our own; nil: nobody else
	logger   *slog.Logger
	posthorn posthorn.Config
}

// daemon is a running server: store, dispatcher and REST API.
type daemon struct {
	url    string
	token  string
	failed chan error // gets an error if the REST API can't be served any more

	store      posthorn.Store
	dispatcher *posthorn.Dispatcher
	http       *http.Server
}

// startDaemon starts everything, in the order in which each thing needs the one before.
func startDaemon(ctx context.Context, cfg daemonConfig) (_ *daemon, err error) {
	data, err := filepath.Abs(cfg.data)
	if err != nil {
		return nil, err
	}
	file, err := cfg.database.file(data)
	if err != nil {
		return nil, err
	}
	d := &daemon{token: cfg.token, failed: make(chan error, 1)}
	if d.store, err = cfg.database.open(ctx, file, cfg.logger); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.store.Close()
		}
	}()
	if d.token == "" {
		if d.token, err = adminToken(data, cfg.logger); err != nil {
			return nil, err
		}
	}
	// Listening comes before starting, which may take over work: an address in use shows before that. And the dispatcher is
	// to know the address, so that no webhook leads back here.
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.listen)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			listener.Close()
		}
	}()
	if own, ok := listener.Addr().(*net.TCPAddr); ok {
		cfg.posthorn.OwnAddresses = append(cfg.posthorn.OwnAddresses, own.AddrPort())
	}
	if d.dispatcher, err = posthorn.New(d.store, cfg.posthorn); err != nil {
		return nil, err
	}
	if file != "" && len(cfg.posthorn.SecretKeys) == 0 {
		cfg.logger.Info("signing secrets are encrypted with the key file: keep it with the backups", "file", file+".key")
	}
	api, err := httpapi.New(d.dispatcher, httpapi.Config{
		Token: d.token, Authorizer: cfg.access, Logger: cfg.logger, Version: buildVersion(),
		MaxRequests:                cfg.limits.MaxAPIRequests,
		MaxMemory:                  int64(cfg.limits.MaxAPIMemory),
		MaxEventsPerSecondPerToken: cfg.limits.MaxEventsPerSecondPerToken,
		MaxEventsPerSecondPerRepo:  cfg.limits.MaxEventsPerSecondPerRepo,
	})
	if err != nil {
		return nil, err
	}
	if err = d.dispatcher.Start(ctx); err != nil {
		return nil, err
	}

	d.http = &http.Server{
		Handler:           api,
		ReadHeaderTimeout: cfg.limits.HeaderTimeout,
		ReadTimeout:       cfg.limits.RequestTimeout,
		WriteTimeout:      cfg.limits.AnswerTimeout,
		IdleTimeout:       cfg.limits.IdleTimeout,
		MaxHeaderBytes:    int(cfg.limits.MaxHeaderSize),
		ErrorLog:          slog.NewLogLogger(cfg.logger.Handler(), slog.LevelWarn),
	}
	limited := listener
	if n := cfg.limits.MaxAPIConnections; n > 0 { // a demo has none
		limited = netutil.LimitListener(listener, n)
	}
	go func() {
		if err := d.http.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
			d.failed <- fmt.Errorf("serve the REST API: %w", err)
		}
	}()
	d.url = "http://" + reachable(listener.Addr())
	cfg.logger.Info("listening", "listen", listener.Addr().String(), "url", d.url, "version", buildVersion())
	return d, nil
}

// stop stops taking events, lets what is under way finish until ctx ends, and closes everything. Until the deliveries
// have finished the REST API still answers, and says that it isn't ready.
func (d *daemon) stop(ctx context.Context) error {
	err := d.dispatcher.Stop(ctx)
	if e := d.http.Shutdown(ctx); e != nil {
		err = errors.Join(err, fmt.Errorf("requests to the REST API were cut off: %w", e), d.http.Close())
	}
	return errors.Join(err, d.store.Close())
}

// reachable returns host and port of a listener in a form that a client on this machine can dial.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	return fmt.Sprintf("localhost:%d", tcp.Port)
}
