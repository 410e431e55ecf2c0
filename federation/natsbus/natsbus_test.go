package natsbus

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/federation/bustest"
	"github.com/isthmus-mesh/isthmus/trust"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

const patience = 30 * time.Second

// allowed is a live list of who may connect.
type allowed struct {
	mu   sync.Mutex
	keys []string
}

func (a *allowed) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.keys)
}

func (a *allowed) add(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys = append(a.keys, key)
}

func (a *allowed) remove(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys = slices.DeleteFunc(a.keys, func(k string) bool { return k == key })
}

func newKey(t *testing.T) (ed25519.PrivateKey, string) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	name, err := PublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return key, name
}

func startServer(t *testing.T, who *allowed) *Server {
	t.Helper()
	key, _ := newKey(t)
	s, err := StartServer(ServerConfig{Listen: "127.0.0.1:0", Key: key, Clients: who.list})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// dial connects with that key, fast to reconnect.
func dial(t *testing.T, s *Server, key ed25519.PrivateKey) *Client {
	t.Helper()
	pin, err := ParsePublicKey(s.own)
	if err != nil {
		t.Fatal(err)
	}
	c, err := start(clientConfig{
		urls: []string{"tls://" + s.Addr()}, key: key, pin: pin, log: s.log, reconnect: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func waitState(t *testing.T, c *Client, want State) {
	t.Helper()
	deadline := time.After(patience)
	for {
		changed := c.Changed()
		if c.State() == want {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("state is %s, want %s", c.State(), want)
		}
	}
}

func TestContract(t *testing.T) {
	broker := func(own bool) func(t *testing.T) bustest.Broker {
		return func(t *testing.T) bustest.Broker {
			t.Helper()
			who := new(allowed)
			s := startServer(t, who)
			first := own
			return bustest.Broker{
				Connect: func(t *testing.T) bustest.Bus {
					t.Helper()
					if first {
						// Once the own client, in this process.
						first = false
						return s.Bus()
					}
					key, name := newKey(t)
					who.add(name)
					return dial(t, s, key)
				},
				Break: func(t *testing.T, b bustest.Bus) func() {
					t.Helper()
					c, _ := b.(*Client)
					waitState(t, c, Connected)
					id, err := c.link.Load().conn.GetClientID()
					if err != nil {
						t.Fatal(err)
					}
					if err := s.nats.DisconnectClientByID(id); err != nil {
						t.Fatal(err)
					}
					return func() {}
				},
				Subscriptions: func() int { return int(s.nats.NumSubscriptions()) },
			}
		}
	}
	t.Run("over the network", func(t *testing.T) { bustest.Run(t, broker(false)) })
	t.Run("own client", func(t *testing.T) { bustest.Run(t, broker(true)) })
}

// TestLetIn: who is not on the list does not get in, who is removed is thrown out, who is put back gets in by itself.
func TestLetIn(t *testing.T) {
	who := new(allowed)
	s := startServer(t, who)
	key, name := newKey(t)
	c := dial(t, s, key)
	waitState(t, s.Bus(), Connected)
	time.Sleep(50 * time.Millisecond) // gives it time to get in, if it could; a slow machine only makes the test weaker
	if c.State() != Connecting || len(s.Connected()) != 0 {
		t.Fatalf("a stranger is %s", c.State())
	}
	who.add(name)
	waitState(t, c, Connected)
	if got := s.Connected(); len(got) != 1 || got[0] != name {
		t.Errorf("connected: %v", got)
	}
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		ended <- c.Subscribe(t.Context(), func() { close(ready) }, func(federation.Message) {})
	}()
	<-ready
	who.remove(name)
	select {
	case err := <-ended:
		if !errors.Is(err, federation.ErrGap) {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("not thrown out")
	}
	waitState(t, c, Connecting)
	who.add(name)
	waitState(t, c, Connected)
}

func TestWrongPin(t *testing.T) {
	who := new(allowed)
	s := startServer(t, who)
	key, name := newKey(t)
	who.add(name)
	pin, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, err = nats.Connect("tls://"+s.Addr(), nats.Secure(trust.PinnedClientConfig(pin)), nats.TLSHandshakeFirst(), nats.NoReconnect(),
		nats.Nkey(name, func(nonce []byte) ([]byte, error) { return ed25519.Sign(key, nonce), nil }))
	if !errors.Is(err, trust.ErrNotPinned) {
		t.Errorf("connected to another key: %v", err)
	}
	c, err := start(clientConfig{urls: []string{"tls://" + s.Addr()}, key: key, pin: pin, log: s.log, reconnect: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for deadline := time.Now().Add(patience); !errors.Is(c.Err(), trust.ErrNotPinned); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it doesn't say why: %v", c.Err())
		}
	}
	if c.State() != Connecting {
		t.Errorf("state %s", c.State())
	}
}

// TestServerRestart: clients outlive their server, and come back to the next at the same place.
func TestServerRestart(t *testing.T) {
	who := new(allowed)
	serverKey, serverName := newKey(t)
	s, err := StartServer(ServerConfig{Listen: "127.0.0.1:0", Key: serverKey, Clients: who.list})
	if err != nil {
		t.Fatal(err)
	}
	key, name := newKey(t)
	who.add(name)
	addr := s.Addr()
	c, err := Dial(DialConfig{URLs: []string{"tls://" + addr}, Key: key, Pin: serverName})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	waitState(t, c, Connected)
	_ = s.Close()
	if _, err = s.Bus().connected(t.Context()); !errors.Is(err, federation.ErrBusClosed) {
		t.Errorf("the own client outlived the server: %v", err)
	}
	waitState(t, c, Connecting)
	if err = c.Publish(t.Context(), federation.Message{Subject: federation.SubjectWant}); err == nil {
		t.Error("published to nobody")
	}
	s, err = StartServer(ServerConfig{Listen: addr, Key: serverKey, Clients: who.list})
	if err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	defer func() { _ = s.Close() }()
	waitState(t, c, Connected)
}

// TestCloseWhileConnecting: Close doesn't wait for a server that doesn't answer.
func TestCloseWhileConnecting(t *testing.T) {
	key, _ := newKey(t)
	_, pin := newKey(t)
	c, err := Dial(DialConfig{URLs: []string{"tls://192.0.2.1:4222"}, Key: key, Pin: pin})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Subscribe(ctx, func() {}, func(federation.Message) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("subscribe: %v", err)
	}
	closed := make(chan struct{})
	go func() { _ = c.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("close hangs")
	}
}

func TestSignsNoncesOnly(t *testing.T) {
	key, name := newKey(t)
	pair, _, err := keyPair(key)
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{pair: pair}
	signature, err := c.sign([]byte("n0-nCe_x5yABcd1"))
	if err != nil {
		t.Fatal(err)
	}
	if public, err := ParsePublicKey(name); err != nil || !ed25519.Verify(public, []byte("n0-nCe_x5yABcd1"), signature) {
		t.Errorf("signature does not fit: %v", err)
	}
	for _, nonce := range []string{"", strings.Repeat("a", maxNonce+1), strings.Repeat(" ", 64) + "TLS 1.3", "a b", "a\x00"} {
		if _, err := c.sign([]byte(nonce)); err == nil {
			t.Errorf("signed %q", nonce)
		}
	}
}

func TestDialConfig(t *testing.T) {
	key, pin := newKey(t)
	for what, cfg := range map[string]DialConfig{
		"no URL":      {Key: key, Pin: pin},
		"no port":     {URLs: []string{"tls://example.org"}, Key: key, Pin: pin},
		"scheme":      {URLs: []string{"http://example.org:1"}, Key: key, Pin: pin},
		"credentials": {URLs: []string{"tls://u:p@example.org:1"}, Key: key, Pin: pin},
		"no key":      {URLs: []string{"tls://example.org:1"}, Pin: pin},
		"no pin":      {URLs: []string{"tls://example.org:1"}, Key: key},
	} {
		if c, err := Dial(cfg); err == nil {
			t.Errorf("%s: taken", what)
			_ = c.Close()
		}
	}
	for what, cfg := range map[string]ServerConfig{
		"no key":  {Listen: "127.0.0.1:0"},
		"no port": {Listen: "127.0.0.1", Key: key},
		"port":    {Listen: "127.0.0.1:99999", Key: key},
	} {
		if s, err := StartServer(cfg); err == nil {
			t.Errorf("%s: taken", what)
			_ = s.Close()
		}
	}
}

// TestBusKey: federation spells bus keys by itself, as NATS does.
func TestBusKey(t *testing.T) {
	keys, err := federation.OpenKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	public, err := ParsePublicKey(keys.BusKey())
	if err != nil {
		t.Fatal(err)
	}
	if !public.Equal(keys.BusPrivateKey().Public()) {
		t.Error("another key")
	}
}
