package natsbus

import (
	"crypto/ed25519"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/isthmus-mesh/isthmus/internal/openfiles"
	"github.com/isthmus-mesh/isthmus/trust"
)

// TestOwnKeyFromOutside: the own key opens the door in this process only.
func TestOwnKeyFromOutside(t *testing.T) {
	s := startServer(t, new(allowed))
	waitState(t, s.Bus(), Connected)
	if !s.allowed(s.own, true) || s.allowed(s.own, false) || s.allowed("", true) || s.allowed("", false) {
		t.Error("the own key is good from outside, or nobody's is")
	}
	key, _ := newKey(t)
	_, err := connectRaw(t, s, nats.Nkey(s.own, func(nonce []byte) ([]byte, error) { return ed25519.Sign(key, nonce), nil }))
	if err == nil {
		t.Error("connected with the own public key and another's signature")
	}
}

// connectRaw connects with NATS' own client and other options than ours.
func connectRaw(t *testing.T, s *Server, options ...nats.Option) (*nats.Conn, error) {
	t.Helper()
	pin, err := ParsePublicKey(s.own)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nats.Connect("tls://"+s.Addr(), append([]nats.Option{
		nats.Secure(trust.PinnedClientConfig(pin)), nats.TLSHandshakeFirst(), nats.Timeout(patience), nats.NoReconnect(),
	}, options...)...)
	if err == nil {
		t.Cleanup(conn.Close)
	}
	return conn, err
}

func TestRefused(t *testing.T) {
	who := new(allowed)
	s := startServer(t, who)
	key, name := newKey(t)
	who.add(name)
	other, _ := newKey(t)
	for what, options := range map[string][]nats.Option{
		"no credentials":   nil,
		"password":         {nats.UserInfo("admin", "admin")},
		"wrong signature":  {nats.Nkey(name, func(nonce []byte) ([]byte, error) { return ed25519.Sign(other, nonce), nil })},
		"empty signature":  {nats.Nkey(name, func([]byte) ([]byte, error) { return nil, nil })},
		"fixed signature":  {nats.Nkey(name, func([]byte) ([]byte, error) { return ed25519.Sign(key, []byte("nonce")), nil })},
		"not a public key": {nats.Nkey("UAAA", func(nonce []byte) ([]byte, error) { return ed25519.Sign(key, nonce), nil })},
	} {
		if _, err := connectRaw(t, s, options...); err == nil {
			t.Errorf("%s: connected", what)
		}
	}
	// Without TLS nothing is said at all.
	if _, err := nats.Connect("nats://"+s.Addr(), nats.Timeout(200*time.Millisecond), nats.NoReconnect()); err == nil {
		t.Error("connected without TLS")
	}
}

// TestSilentConnectionsKeepNobodyOut: a thousand strangers take no peer's place.
func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	const strangers = 1100
	if n := openfiles.Limit(); n > 0 && n < 2*fileShare*strangers {
		t.Skipf("only %d files may be open here", n)
	}
	who := new(allowed)
	s := startServer(t, who)
	key, name := newKey(t)
	who.add(name)
	for range strangers {
		conn, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	if _, err := connectRaw(t, s, nats.Nkey(name, func(nonce []byte) ([]byte, error) { return ed25519.Sign(key, nonce), nil })); err != nil {
		t.Errorf("a peer beside %d strangers: %v", strangers, err)
	}
}

func TestPermissions(t *testing.T) {
	who := new(allowed)
	s := startServer(t, who)
	key, name := newKey(t)
	who.add(name)
	refused := make(chan error, 10)
	conn, err := connectRaw(t, s,
		nats.Nkey(name, func(nonce []byte) ([]byte, error) { return ed25519.Sign(key, nonce), nil }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"publish elsewhere":   func() error { return conn.Publish("elsewhere", nil) },
		"publish $SYS":        func() error { return conn.Publish("$SYS.REQ.SERVER.PING", nil) },
		"publish $JS":         func() error { return conn.Publish("$JS.API.INFO", nil) },
		"subscribe to all":    func() error { _, err := conn.SubscribeSync(">"); return err },
		"subscribe elsewhere": func() error { _, err := conn.SubscribeSync("_INBOX.x"); return err },
	} {
		if err := try(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(patience):
			t.Errorf("%s: not refused", what)
		}
	}
	if s.nats.JetStreamEnabled() || s.nats.MonitorAddr() != nil || s.nats.ClusterAddr() != nil {
		t.Error("more is open than the client port")
	}
}

func TestTooManyConnections(t *testing.T) {
	who := new(allowed)
	s := startServer(t, who)
	key, name := newKey(t)
	who.add(name)
	sign := nats.Nkey(name, func(nonce []byte) ([]byte, error) { return ed25519.Sign(key, nonce), nil })
	var first *nats.Conn
	for i := range maxConnectionsOfKey {
		conn, err := connectRaw(t, s, sign)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		first = conn
	}
	if _, err := connectRaw(t, s, sign); err == nil {
		t.Fatal("one connection too many was let in")
	}
	first.Close()
	deadline := time.Now().Add(patience)
	for {
		if _, err := connectRaw(t, s, sign); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a connection that ended still counts")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
