package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// MaxAnswer bounds what a Client reads of one answer.
const MaxAnswer = 64 << 20

// ErrUnreachable is what every error of a Client is (errors.Is) when nobody answered.
var ErrUnreachable = errors.New("unreachable")

// Error is an answer that says no.
type Error struct {
	Status  int    // of HTTP
	Message string // what the server said
}

// Error returns what the server said.
func (e *Error) Error() string { return fmt.Sprintf("%s (HTTP %d)", e.Message, e.Status) }

// Client asks one control, as a rule over its Unix socket. Safe for concurrent use.
type Client struct {
	where string
	http  *http.Client
}

// NewClient returns a Client of the control that serves the Unix socket at that path. It dials when asked.
func NewClient(socket string) *Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &Client{
		where: socket,
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", socket)
			},
			DisableKeepAlives: true, // a restarted control must not meet a connection of its dead self
		}},
	}
}

// NewClientOver returns a Client of the control that dial connects to; where says in errors which that is. It keeps its connections
// for the next question, until Close.
func NewClientOver(where string, dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{
		where: where,
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		}},
	}
}

// Where returns the path of the socket that the Client dials, or what NewClientOver was given.
func (c *Client) Where() string { return c.where }

// Close ends the connections that nobody uses.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the cluster at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// Services asks for the services of the own cluster.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	return ask[[]Service](ctx, c, http.MethodGet, "/v1/services", nil)
}

// Endpoints asks for the copies that the cluster knows.
func (c *Client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	return ask[[]Endpoint](ctx, c, http.MethodGet, "/v1/endpoints", nil)
}

// Peers asks for the other clusters.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	return ask[[]Peer](ctx, c, http.MethodGet, "/v1/peers", nil)
}

// Exports asks for the exports with their conditions.
func (c *Client) Exports(ctx context.Context) ([]Export, error) {
	return ask[[]Export](ctx, c, http.MethodGet, "/v1/exports", nil)
}

// Imports asks for what the clusterset offers.
func (c *Client) Imports(ctx context.Context) ([]Import, error) {
	return ask[[]Import](ctx, c, http.MethodGet, "/v1/imports", nil)
}

// Proxies asks for the gateways, sidecars and node proxies.
func (c *Client) Proxies(ctx context.Context) ([]Proxy, error) {
	return ask[[]Proxy](ctx, c, http.MethodGet, "/v1/proxies", nil)
}

// Introduction asks for what another cluster's ClusterPeer must say.
func (c *Client) Introduction(ctx context.Context) (Introduction, error) {
	return ask[Introduction](ctx, c, http.MethodGet, "/v1/introduction", nil)
}

// Token asks for a single-use join token.
func (c *Client) Token(ctx context.Context, r TokenRequest) (Token, error) {
	return ask[Token](ctx, c, http.MethodPost, "/v1/tokens", r)
}

func ask[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var into T
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return into, fmt.Errorf("control at %s: %w", c.where, err)
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, payload)
	if err != nil {
		return into, fmt.Errorf("control at %s: %w", c.where, err)
	}
	if payload != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		cause := errors.Unwrap(err)
		if dial, ok := errors.AsType[*net.OpError](cause); ok && dial.Op == "dial" {
			cause = dial.Err // where to has been said
		}
		return into, fmt.Errorf("control at %s: %w: %w", c.where, ErrUnreachable, cause)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer))
	if err != nil {
		return into, fmt.Errorf("control at %s: %w: %w", c.where, ErrUnreachable, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var said struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(answer, &said) != nil || said.Error == "" {
			said.Error = http.StatusText(resp.StatusCode)
		}
		return into, fmt.Errorf("control at %s: %w", c.where, &Error{resp.StatusCode, said.Error})
	}
	if resp.StatusCode == http.StatusNoContent {
		return into, nil
	}
	if err := json.Unmarshal(answer, &into); err != nil {
		return into, fmt.Errorf("control at %s: %s: %w", c.where, path, err)
	}
	return into, nil
}
