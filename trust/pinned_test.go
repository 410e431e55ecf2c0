package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"testing"
)

func TestPinned(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	otherPublic, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, err := PinnedServerConfig(private, "bus/1")
	if err != nil {
		t.Fatal(err)
	}
	client := PinnedClientConfig(public)
	client.NextProtos = []string{"bus/1"}
	s, c, serverErr, clientErr := shake(t, server, client)
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server %v, client %v", serverErr, clientErr)
	}
	if s.ConnectionState().NegotiatedProtocol != "bus/1" || c.ConnectionState().Version != tls.VersionTLS13 {
		t.Errorf("protocol %q, version %#x", s.ConnectionState().NegotiatedProtocol, c.ConnectionState().Version)
	}
	svidServer := ServerConfig(TLS{Identity: identityOf(rootOf(t, domainA).svid(gatewayA)), AllowAnonymous: true})
	for name, test := range map[string]struct {
		server *tls.Config
		pin    ed25519.PublicKey
	}{
		"another key": {server, otherPublic},
		"no pin":      {server, nil},
		"short pin":   {server, public[:16]},
		"an SVID":     {svidServer, public},
	} {
		if _, _, serverErr, clientErr := shake(t, test.server, PinnedClientConfig(test.pin)); !errors.Is(clientErr, ErrNotPinned) || serverErr == nil {
			t.Errorf("%s: server %v, client %v, want ErrNotPinned", name, serverErr, clientErr)
		}
	}
	if _, err := PinnedServerConfig(nil); err == nil {
		t.Error("a server without a key")
	}
	// The pin is a copy.
	pin := append(ed25519.PublicKey(nil), public...)
	client = PinnedClientConfig(pin)
	copy(pin, otherPublic)
	if _, _, serverErr, clientErr := shake(t, server, client); serverErr != nil || clientErr != nil {
		t.Errorf("server %v, client %v", serverErr, clientErr)
	}
	if !server.SessionTicketsDisabled || !client.SessionTicketsDisabled || server.MinVersion != tls.VersionTLS13 || client.MinVersion != tls.VersionTLS13 {
		t.Error("tickets or old versions are on")
	}
}
