package main

import (
	"fmt"
	"time"
)

// apiLimits is the flags that limit what clients of the REST API can ask of the server. docs/limits.md lists all limits.
type apiLimits struct {
	MaxAPIRequests             int           `group:"limits" default:"1024" placeholder:"N" help:"Requests to the REST API that may be under way at once, and as many redeliveries and polls beside them (default ${default})."`
	MaxAPIMemory               byteSize      `group:"limits" name:"max-api-memory" default:"256MiB" placeholder:"SIZE" help:"Memory for the bodies of events that are being received and for answers with payloads, but for small ones (default ${default})."`
	MaxAPIConnections          int           `group:"limits" name:"max-api-connections" default:"4096" placeholder:"N" help:"Connections to the REST API; more wait to be accepted (default ${default})."`
	MaxEventsPerSecondPerToken int           `group:"limits" default:"0" placeholder:"N" help:"Events that a token may post in a second, at each node; 0: any number (default ${default})."`
	MaxEventsPerSecondPerRepo  int           `group:"limits" default:"0" placeholder:"N" help:"Events that may be posted to a repo in a second, at each node; 0: any number (default ${default})."`
	MaxHeaderSize              byteSize      `group:"limits" default:"64KiB" placeholder:"SIZE" help:"Size that the header of a request to the REST API may have (default ${default})."`
	HeaderTimeout              time.Duration `group:"limits" default:"10s" placeholder:"DURATION" help:"How long a client may take to send the header of a request (default ${default})."`
	RequestTimeout             time.Duration `group:"limits" default:"1m" placeholder:"DURATION" help:"How long it may take to send the whole request (default ${default})."`
	AnswerTimeout              time.Duration `group:"limits" default:"2m" placeholder:"DURATION" help:"How long it may take from the header of a request to the end of the answer, but for that of a redelivery or a poll (default ${default})."`
	IdleTimeout                time.Duration `group:"limits" default:"2m" placeholder:"DURATION" help:"How long a connection is kept without a request (default ${default})."`
}

func (l *apiLimits) check() error {
	if l.MaxEventsPerSecondPerToken < 0 || l.MaxEventsPerSecondPerRepo < 0 {
		return fmt.Errorf("--max-events-per-second-per-token and --max-events-per-second-per-repo can't be negative")
	}
	for flag, n := range map[string]int64{
		"max-api-requests": int64(l.MaxAPIRequests), "max-api-memory": int64(l.MaxAPIMemory), "max-api-connections": int64(l.MaxAPIConnections), "max-header-size": int64(l.MaxHeaderSize), "header-timeout": int64(l.HeaderTimeout),
		"request-timeout": int64(l.RequestTimeout), "answer-timeout": int64(l.AnswerTimeout), "idle-timeout": int64(l.IdleTimeout),
	} {
		if n <= 0 {
			return fmt.Errorf("--%s must be more than zero", flag)
		}
	}
	return nil
}
