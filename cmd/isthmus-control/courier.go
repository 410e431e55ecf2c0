package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation/natsbus"
)

// courier is control's Courier over NATS.
type courier struct {
	listen string
	log    *slog.Logger
}

// Serve starts the embedded server.
func (c *courier) Serve(_ context.Context, key ed25519.PrivateKey, clients func() []string) (control.Line, error) {
	server, err := natsbus.StartServer(natsbus.ServerConfig{Listen: c.listen, Key: key, Clients: clients, Log: c.log})
	if err != nil {
		return nil, fmt.Errorf("bus.listen: %w", err)
	}
	return &line{server.Bus(), server.Close, c.log}, nil
}

// Dial makes a client of a peer's server.
func (c *courier) Dial(key ed25519.PrivateKey, to control.Neighbour) (control.Line, error) {
	log := c.log.With("peer", to.Cluster)
	client, err := natsbus.Dial(natsbus.DialConfig{URLs: to.URLs, Key: key, Pin: to.Key, Log: log})
	if err != nil {
		return nil, err
	}
	return &line{client, client.Close, log}, nil
}

// line is a client, and how it is closed. A pointer: buses are compared.
type line struct {
	*natsbus.Client
	end func() error
	log *slog.Logger
}

// State is the client's.
func (l *line) State() string { return string(l.Client.State()) }

// Close ends it.
func (l *line) Close() {
	if err := l.end(); err != nil {
		l.log.Warn("bus not closed cleanly", "error", err)
	}
}
