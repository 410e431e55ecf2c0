package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// ErrNotPinned tells that a server showed another key than the one it is pinned to.
var ErrNotPinned = errors.New("trust: the server's key is not the pinned one")

// PinnedServerConfig returns the configuration of a server that is known by its Ed25519 key and nothing else, such as a
// message bus between domains that must work before either has the other's bundle. Clients are not asked for certificates.
func PinnedServerConfig(key ed25519.PrivateKey, protocols ...string) (*tls.Config, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("trust: pinned server: a key of %d bytes, want %d", len(key), ed25519.PrivateKeySize)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "isthmus pinned key"},
		NotBefore:             time.Unix(0, 0),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // "no end" (RFC 5280, 4.1.2.5): the pin is what ends
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("trust: pinned server: %w", err)
	}
	c := TLS{Protocols: protocols}.base()
	c.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	return c, nil
}

// PinnedClientConfig returns the configuration of a client that accepts the server with that key and no other, whatever
// else its certificate says. Handshakes fail with ErrNotPinned.
func PinnedClientConfig(pin ed25519.PublicKey) *tls.Config {
	pin = append(ed25519.PublicKey(nil), pin...)
	c := TLS{}.base()
	c.InsecureSkipVerify = true // there is no authority; VerifyConnection compares the key
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) != 1 || len(pin) != ed25519.PublicKeySize {
			return ErrNotPinned
		}
		if key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey); !ok || !pin.Equal(key) {
			return ErrNotPinned
		}
		return nil
	}
	return c
}
