package natsbus

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/openfiles"
	"github.com/isthmus-mesh/isthmus/trust"
)

// ServerConfig is what a Server is made from. Listen and Key are required.
type ServerConfig struct {
	// Listen is host:port; port 0 takes a free one.
	Listen string
	// Key is the own bus key: what the server's certificate shows, and who the own client is.
	Key ed25519.PrivateKey
	// Clients returns the public keys ("U…") that may connect at this moment. It is asked at each connection, and twice a second
	// for those that stand: who is no longer in it is disconnected. It must not block. nil: nobody.
	Clients func() []string
	Log     *slog.Logger // default: discard
}

// Server is an embedded NATS server, and the own member's client of it. It listens until Close.
type Server struct {
	cfg    ServerConfig
	own    string
	nats   *server.Server
	client *Client
	log    *slog.Logger

	stop    chan struct{}
	stopped sync.WaitGroup
	closing sync.Once

	mu          sync.Mutex
	connections map[uint64]string // guarded by mu: the key of each connection that was let in
}

// StartServer listens, and returns once clients can connect.
func StartServer(cfg ServerConfig) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clients == nil {
		cfg.Clients = func() []string { return nil }
	}
	_, own, err := keyPair(cfg.Key)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, own: own, log: cfg.Log, stop: make(chan struct{}), connections: make(map[uint64]string)}
	opts, err := s.options()
	if err != nil {
		return nil, err
	}
	if s.nats, err = server.NewServer(opts); err != nil {
		return nil, fmt.Errorf("natsbus: server: %w", err)
	}
	s.nats.SetLoggerV2(logger{cfg.Log}, false, false, false)
	s.nats.Start()
	if !s.nats.ReadyForConnections(connectTimeout) {
		s.shutdown()
		return nil, fmt.Errorf("natsbus: server does not listen on %s", cfg.Listen)
	}
	s.client, err = start(clientConfig{key: cfg.Key, log: cfg.Log, inProcess: s.nats})
	if err != nil {
		s.shutdown()
		return nil, err
	}
	s.stopped.Go(s.recheckNowAndThen)
	return s, nil
}

func (s *Server) options() (*server.Options, error) {
	host, portText, err := net.SplitHostPort(s.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("natsbus: listen: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("natsbus: listen: port %q: %w", portText, err)
	}
	tlsConfig, err := trust.PinnedServerConfig(s.cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("natsbus: %w", err)
	}
	opts := &server.Options{
		ServerName:                 s.own,
		Host:                       host,
		Port:                       int(port),
		TLS:                        true,
		TLSConfig:                  tlsConfig,
		TLSHandshakeFirst:          true, // who doesn't speak TLS is told nothing
		TLSTimeout:                 authTimeout.Seconds(),
		AuthTimeout:                authTimeout.Seconds(),
		AlwaysEnableNonce:          true,
		CustomClientAuthentication: s,
		MaxConn:                    openfiles.Share(fileShare, maxConnections),
		MaxSubs:                    maxSubscriptions,
		MaxPayload:                 federation.MaxMessage,
		MaxPending:                 maxPending,
		MaxControlLine:             maxControlLine,
		PingInterval:               pingInterval,
		MaxPingsOut:                maxPingsOutstanding,
		WriteDeadline:              writeDeadline,
		NoHeaderSupport:            true,
		NoSystemAccount:            true,
		NoLog:                      true,
		NoSigs:                     true,
	}
	if port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	if host == "" {
		opts.Host = "0.0.0.0"
	}
	return opts, nil
}

// Addr returns where the server listens, host:port.
func (s *Server) Addr() string { return s.nats.Addr().String() }

// Bus returns the own member's client, which ends with the server.
func (s *Server) Bus() *Client { return s.client }

// Connected returns the public keys of those that are connected now, each once, in order, without the own.
func (s *Server) Connected() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, key := range s.connections {
		if key != s.own {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Close disconnects everybody and waits until nothing of the server runs.
func (s *Server) Close() error {
	s.closing.Do(func() {
		close(s.stop)
		s.stopped.Wait()
		_ = s.client.Close()
		s.shutdown()
	})
	return nil
}

func (s *Server) shutdown() {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
}

// Check implements server.Authentication: a client is let in by the signature of a key that may connect now.
func (s *Server) Check(c server.ClientAuthentication) bool {
	if c.Kind() != server.CLIENT {
		return false
	}
	key, err := s.authenticate(c)
	if err != nil {
		s.log.Warn("bus client refused", "remote", addressOf(c), "error", err)
		return false
	}
	if !s.admit(c.GetID(), key) {
		s.log.Warn("bus client refused: it has too many connections", "remote", addressOf(c), "key", key)
		return false
	}
	both := &server.SubjectPermission{Allow: []string{federation.SubjectAll}}
	c.RegisterUser(&server.User{Username: key, Permissions: &server.Permissions{Publish: both, Subscribe: both}})
	return true
}

func (s *Server) authenticate(c server.ClientAuthentication) (string, error) {
	o := c.GetOpts()
	if !s.allowed(o.Nkey, isInProcess(c)) {
		return "", fmt.Errorf("key %q may not connect", o.Nkey)
	}
	pair, err := nkeys.FromPublicKey(o.Nkey)
	if err != nil {
		return "", err
	}
	signature, err := base64.RawURLEncoding.DecodeString(o.Sig)
	if err != nil {
		return "", err
	}
	nonce := c.GetNonce()
	if len(nonce) == 0 {
		return "", errors.New("no nonce")
	}
	return o.Nkey, pair.Verify(nonce, signature)
}

// allowed reports whether a key may connect: the own one in this process only.
func (s *Server) allowed(key string, inProcess bool) bool {
	if inProcess || key == s.own {
		return inProcess && key == s.own
	}
	return slices.Contains(s.cfg.Clients(), key)
}

// admit notes a connection, unless the key has too many.
func (s *Server) admit(id uint64, key string) bool {
	s.recheck() // forgets those that have gone
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, k := range s.connections {
		if k == key {
			n++
		}
	}
	if n >= maxConnectionsOfKey {
		return false
	}
	s.connections[id] = key
	return true
}

func (s *Server) recheckNowAndThen() {
	t := time.NewTicker(recheckClients)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			s.recheck()
		}
	}
}

// recheck forgets connections that have ended and disconnects those whose key may not connect any more.
func (s *Server) recheck() {
	allowed := s.cfg.Clients()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, key := range s.connections {
		switch {
		case s.nats.GetClient(id) == nil:
			delete(s.connections, id)
		case key != s.own && !slices.Contains(allowed, key):
			s.log.Info("bus client disconnected: it may not connect any more", "key", key)
			// The only error is that it has gone already.
			_ = s.nats.DisconnectClientByID(id)
			delete(s.connections, id)
		}
	}
}

func isInProcess(c server.ClientAuthentication) bool {
	a := c.RemoteAddress()
	return a != nil && a.Network() == "pipe"
}

func addressOf(c server.ClientAuthentication) string {
	if a := c.RemoteAddress(); a != nil {
		return a.String()
	}
	return "unknown"
}

// logger gives NATS' messages to slog, with NATS' text as a value.
type logger struct{ log *slog.Logger }

func (l logger) Noticef(format string, v ...any) { l.say(l.log.Debug, format, v) }
func (l logger) Warnf(format string, v ...any)   { l.say(l.log.Warn, format, v) }
func (l logger) Errorf(format string, v ...any)  { l.say(l.log.Warn, format, v) } // most are a client's doing
func (l logger) Fatalf(format string, v ...any)  { l.say(l.log.Error, format, v) }
func (l logger) Debugf(format string, v ...any)  { l.say(l.log.Debug, format, v) }
func (l logger) Tracef(format string, v ...any)  { l.say(l.log.Debug, format, v) }

func (logger) say(at func(string, ...any), format string, v []any) {
	at("nats server", "detail", fmt.Sprintf(format, v...))
}
