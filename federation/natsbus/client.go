package natsbus

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/trust"
)

// DialConfig is what a Client is made from. URLs, Key and Pin are required.
type DialConfig struct {
	// URLs of one server, "tls://host:port", tried in turn. All must show the pinned key.
	URLs []string
	// Key is the own bus key.
	Key ed25519.PrivateKey
	// Pin is the server's public bus key ("U…").
	Pin string
	Log *slog.Logger // default: discard
}

// State says whether a Client has its server.
type State string

// The states.
const (
	Connecting State = "connecting"
	Connected  State = "connected"
	Closed     State = "closed"
)

// Client is a federation.Bus over one NATS server. It connects by itself, for ever, until Close.
type Client struct {
	cfg    clientConfig
	public string
	pair   nkeys.KeyPair
	log    *slog.Logger

	ctx     context.Context //nolint:containedctx // ends with Close; dials that NATS makes on its own depend on it
	cancel  context.CancelFunc
	running sync.WaitGroup
	link    *live.Value[linkState]

	mu     sync.Mutex // held while link is read and stored anew
	reason error      // guarded by mu: why the last attempt failed; nil once connected
}

// linkState is a connection at one time. A subscription belongs to one generation.
type linkState struct {
	conn       *nats.Conn
	state      State
	generation uint64
}

type clientConfig struct {
	urls      []string
	key       ed25519.PrivateKey
	pin       ed25519.PublicKey
	inProcess nats.InProcessConnProvider // instead of urls and pin
	log       *slog.Logger
	reconnect time.Duration // the first pause; default reconnectFirst
}

// Dial returns a client that connects in the background.
func Dial(cfg DialConfig) (*Client, error) {
	c := clientConfig{key: cfg.Key, log: cfg.Log}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.URLs) == 0 {
		return nil, errors.New("natsbus: dial: no URL")
	}
	for _, text := range cfg.URLs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("natsbus: dial: %w", err)
		}
		if (u.Scheme != "tls" && u.Scheme != "nats") || u.Port() == "" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("natsbus: dial: %q is not tls://host:port", text)
		}
		c.urls = append(c.urls, "tls://"+u.Host)
	}
	var err error
	if c.pin, err = ParsePublicKey(cfg.Pin); err != nil {
		return nil, err
	}
	return start(c)
}

func start(cfg clientConfig) (*Client, error) {
	pair, public, err := keyPair(cfg.key)
	if err != nil {
		return nil, err
	}
	if cfg.reconnect == 0 {
		cfg.reconnect = reconnectFirst
	}
	c := &Client{cfg: cfg, public: public, pair: pair, log: cfg.log, link: live.NewValue(linkState{state: Connecting})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.running.Go(c.connect)
	return c, nil
}

// connect makes the one nats.Conn of the client, which reconnects from then on.
func (c *Client) connect() {
	pause := c.cfg.reconnect
	for {
		conn, err := c.open()
		if err == nil {
			<-c.ctx.Done()
			conn.Close()
			return
		}
		c.log.Warn("bus connection cannot be made; trying again", "servers", c.cfg.urls, "error", err)
		select {
		case <-c.ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause)): //nolint:gosec // G404: spreads load
			pause = min(2*pause, reconnectMax)
		}
	}
}

func (c *Client) open() (*nats.Conn, error) {
	options := []nats.Option{
		nats.Name("isthmus"),
		nats.Nkey(c.public, c.sign),
		nats.NoEcho(),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(), // a ClusterPeer may be on its way
		nats.IgnoreDiscoveredServers(),
		nats.DontRandomize(),
		nats.ReconnectBufSize(-1), // what can't be sent is an error at once
		nats.CustomReconnectDelay(c.reconnectDelay),
		nats.Timeout(connectTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPingsOutstanding),
		nats.ConnectHandler(func(n *nats.Conn) { c.move(n, Connected) }),
		nats.ReconnectHandler(func(n *nats.Conn) { c.move(n, Connected) }),
		nats.DisconnectErrHandler(func(n *nats.Conn, err error) {
			c.move(n, Connecting)
			c.log.Info("bus disconnected", "servers", c.cfg.urls, "error", err)
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.failed(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.log.Warn("bus error", "servers", c.cfg.urls, "error", err)
		}),
	}
	if c.cfg.inProcess != nil {
		return nats.Connect("", append(options, nats.InProcessServer(c.cfg.inProcess))...)
	}
	return nats.Connect(strings.Join(c.cfg.urls, ","), append(options,
		nats.Secure(trust.PinnedClientConfig(c.cfg.pin)),
		nats.TLSHandshakeFirst(),
		nats.SetCustomDialer(dialer{c.ctx}))...)
}

// dialer makes connections that Close interrupts, also in their handshake.
type dialer struct{ ctx context.Context } //nolint:containedctx // nats.CustomDialer has no context of its own

func (d dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(d.ctx, func() { _ = conn.Close() })
	return interruptible{conn, stop}, nil
}

type interruptible struct {
	net.Conn
	release func() bool
}

func (i interruptible) Close() error {
	i.release()
	return i.Conn.Close()
}

func (c *Client) reconnectDelay(attempt int) time.Duration {
	d := reconnectMax
	if attempt < 8 {
		d = min(c.cfg.reconnect<<max(attempt, 0), reconnectMax)
	}
	return d/2 + rand.N(d)/2 //nolint:gosec // G404: spreads load
}

// sign proves to a server who we are. It signs only what looks like a NATS nonce: the same key signs TLS handshakes for the own
// server, and a hostile server must not get such a signature by calling it a nonce.
func (c *Client) sign(nonce []byte) ([]byte, error) {
	if len(nonce) == 0 || len(nonce) > maxNonce {
		return nil, fmt.Errorf("natsbus: nonce of %d bytes", len(nonce))
	}
	for _, b := range nonce {
		if (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && (b < '0' || b > '9') && b != '-' && b != '_' {
			return nil, errors.New("natsbus: nonce is not base64")
		}
	}
	return c.pair.Sign(nonce)
}

func (c *Client) move(conn *nats.Conn, to State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.link.Load()
	if l.state == Closed {
		return
	}
	if to == Connected {
		c.reason = nil
	}
	c.link.Store(linkState{conn, to, l.generation + 1})
}

// failed notes why an attempt to connect failed, and says so aloud when it is not what it said before.
func (c *Client) failed(err error) {
	c.mu.Lock()
	news := c.reason == nil || err == nil || c.reason.Error() != err.Error()
	c.reason = err
	c.mu.Unlock()
	if news {
		c.log.Warn("bus cannot be reached; trying again", "servers", c.cfg.urls, "error", err)
	}
}

// Err returns why the last attempt to connect failed; nil while connected, and before the second attempt.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// State says whether the client has its server now.
func (c *Client) State() State { return c.link.Load().state }

// Changed returns a channel that is closed when State may have changed.
func (c *Client) Changed() <-chan struct{} { return c.link.Changed() }

// Publish implements federation.Bus.
func (c *Client) Publish(ctx context.Context, m federation.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(m.Data) > federation.MaxMessage || !strings.HasPrefix(m.Subject, federation.SubjectPrefix) {
		return fmt.Errorf("natsbus: %d bytes under %q are not carried", len(m.Data), m.Subject)
	}
	switch l := c.link.Load(); l.state {
	case Closed:
		return federation.ErrBusClosed
	case Connecting:
		return errors.New("natsbus: not connected")
	default:
		if err := l.conn.Publish(m.Subject, m.Data); err != nil {
			return fmt.Errorf("natsbus: publish: %w", err)
		}
		return nil
	}
}

// Subscribe implements federation.Bus.
func (c *Client) Subscribe(ctx context.Context, ready func(), deliver func(federation.Message)) error {
	l, err := c.connected(ctx)
	if err != nil {
		return err
	}
	queue := newMailbox()
	subscription, err := l.conn.Subscribe(federation.SubjectAll, func(m *nats.Msg) {
		queue.put(federation.Message{Subject: m.Subject, Data: m.Data})
	})
	if err != nil {
		return c.gone(ctx, fmt.Errorf("natsbus: subscribe: %w", err))
	}
	defer func() { _ = subscription.Unsubscribe() }() // fails only with the connection, and then there is nothing to end
	flushing, cancel := context.WithTimeout(ctx, flushTimeout)
	err = l.conn.FlushWithContext(flushing)
	cancel()
	if err != nil || c.link.Load().generation != l.generation {
		return c.gone(ctx, federation.ErrGap)
	}
	ready()
	for {
		changed := c.link.Changed()
		if c.link.Load().generation != l.generation {
			return c.gone(ctx, federation.ErrGap)
		}
		m, ok, overflow := queue.take()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case overflow:
			return federation.ErrGap
		case ok:
			deliver(m)
			continue
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-queue.filled:
		}
	}
}

// gone returns why a subscription has ended: with ctx, with the client, or else err.
func (c *Client) gone(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case c.State() == Closed:
		return federation.ErrBusClosed
	}
	return err
}

// connected waits for a connection.
func (c *Client) connected(ctx context.Context) (linkState, error) {
	for {
		changed := c.link.Changed()
		switch l := c.link.Load(); l.state {
		case Connected:
			return l, ctx.Err()
		case Closed:
			return l, federation.ErrBusClosed
		default:
		}
		select {
		case <-ctx.Done():
			return linkState{}, ctx.Err()
		case <-changed:
		}
	}
}

// Close ends the connection and its subscriptions, and waits until nothing of the client runs.
func (c *Client) Close() error {
	c.mu.Lock()
	c.link.Store(linkState{state: Closed})
	c.mu.Unlock()
	c.cancel()
	c.running.Wait()
	c.pair.Wipe()
	return nil
}
