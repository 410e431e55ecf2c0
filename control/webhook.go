package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/isthmus-mesh/isthmus/trust"
)

// Webhook is what a platform calls, that looks for a DNS name where programs of the mesh look for a SPIFFE ID. It is served over TLS with a
// certificate of the own authority, so the platform is given the trust domain's roots to know it by.
//
// Clients are not known: nothing that Handler answers may be secret.
type Webhook struct {
	Listener net.Listener // required
	Names    []string     // of the certificate; at least one
	Handler  http.Handler // required
}

// Limits of a webhook, and of the federation endpoint. Honest clients open few connections, each for one request.
const (
	webhookTimeout      = 10 * time.Second // for a request and its answer
	webhookHeaders      = 16 << 10
	maxWebhook          = 128     // connections at a time
	maxWebhookOfAddress = 64      // of them, from one address
	webhookBytes        = 8 << 20 // that one may send
)

// serveWebhook serves the webhook until ctx ends.
func (c *Control) serveWebhook(ctx context.Context) error {
	w := c.cfg.Webhook
	certificate, err := trust.NewWebServer(c.authority, c.cfg.Now, w.Names...)
	if err != nil {
		return errors.Join(fmt.Errorf("control: webhook: %w", err), w.Listener.Close())
	}
	return c.serveStrangers(ctx, "webhook", w.Listener, certificate.Config(), w.Handler)
}

// serveStrangers serves HTTP over TLS to clients that nobody knows, each connection for one request, until ctx ends.
func (c *Control) serveStrangers(ctx context.Context, what string, l net.Listener, config *tls.Config, h http.Handler) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: webhookTimeout / 2, // the handshake too
		ReadTimeout:       webhookTimeout,
		WriteTimeout:      webhookTimeout,
		MaxHeaderBytes:    webhookHeaders,
		ErrorLog:          slog.NewLogLogger(c.cfg.Log.With("from", what).Handler(), slog.LevelDebug), // of handshakes that strangers break off
	}
	server.SetKeepAlivesEnabled(false) // the gate gives no connection longer than a call takes
	limits := gateLimits{strangers: poolLimits{maxWebhook, maxWebhookOfAddress, webhookBytes}}
	listener := tls.NewListener(newGate(l, limits, c.metrics.shed), config)
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		shutdownErr := server.Shutdown(grace)
		if shutdownErr != nil {
			shutdownErr = server.Close()
		}
		stopped <- shutdownErr
	})
	err := server.Serve(listener)
	if stop() { // ctx has not ended: the listener failed
		return fmt.Errorf("control: %s: %w", what, err)
	}
	return <-stopped
}
