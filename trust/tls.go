package trust

import (
	"crypto/tls"
	"time"
)

// TLS is what a tls.Config is made of. Identity, Bundles and Policy are read at each handshake.
type TLS struct {
	// Identity is shown to the peer. A server needs one; a client without (nil) stays anonymous. One that holds no SVID
	// yet makes handshakes fail with ErrNoIdentity.
	Identity *Identity
	// Bundles the peer is verified with. Nil refuses everybody.
	Bundles *Bundles
	// Policy is asked about the verified peer. Nil refuses everybody.
	Policy Policy
	// Protocols are offered (client) or accepted (server), best first (ALPN). When there are any, a handshake that agrees
	// on none fails with ErrNoProtocol.
	Protocols []string
	// ServerName is sent by a client (SNI). The server's identity is not derived from it: Policy says who is expected.
	ServerName string
	// AllowAnonymous lets a server accept clients that show no certificate at all; Policy isn't asked about those and PeerOf
	// returns ErrNoPeer. A certificate that is shown must pass.
	AllowAnonymous bool
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// ServerConfig returns a server's configuration, for TLS over TCP and for QUIC.
func ServerConfig(t TLS) *tls.Config {
	c := t.base()
	c.ClientAuth = tls.RequireAnyClientCert // verified by VerifyConnection
	if t.AllowAnonymous {
		c.ClientAuth = tls.RequestClientCert
	}
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if t.Identity == nil {
			return nil, ErrNoIdentity
		}
		return t.Identity.tlsCertificate()
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 && t.AllowAnonymous {
			return t.checkProtocol(cs)
		}
		return t.verify(cs)
	}
	return c
}

// ClientConfig returns a client's configuration, for TLS over TCP and for QUIC.
//
// In TLS 1.3 a client's handshake completes before the server has judged the client: being refused shows up as an error of
// the first read.
func ClientConfig(t TLS) *tls.Config {
	c := t.base()
	c.ServerName = t.ServerName
	c.InsecureSkipVerify = true // crypto/tls would look for a DNS name; VerifyConnection looks for a SPIFFE ID
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if t.Identity == nil {
			return new(tls.Certificate), nil
		}
		return t.Identity.tlsCertificate()
	}
	c.VerifyConnection = t.verify
	return c
}

func (t TLS) base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             t.Protocols,
		SessionTicketsDisabled: true,
	}
}

// verify runs in every handshake, resumed ones too, after the certificates were read and before any data is.
func (t TLS) verify(cs tls.ConnectionState) error {
	peer, err := t.Bundles.Verify(cs.PeerCertificates, clock(t.Now)())
	if err != nil {
		return err
	}
	if err := t.Policy.check(peer); err != nil {
		return err
	}
	return t.checkProtocol(cs)
}

// checkProtocol: crypto/tls lets a side that offers no ALPN at all through.
func (t TLS) checkProtocol(cs tls.ConnectionState) error {
	if len(t.Protocols) > 0 && cs.NegotiatedProtocol == "" {
		return ErrNoProtocol
	}
	return nil
}

// PeerOf tells who is on the other side of a connection made with ServerConfig or ClientConfig. It reads what the handshake
// proved and verifies nothing again; NotAfter is the SVID's own. ErrNoPeer when the peer is anonymous.
func PeerOf(cs tls.ConnectionState) (Peer, error) {
	if len(cs.PeerCertificates) == 0 || !cs.HandshakeComplete {
		return Peer{}, ErrNoPeer
	}
	return inspect(cs.PeerCertificates)
}

func clock(now func() time.Time) func() time.Time {
	if now == nil {
		return time.Now
	}
	return now
}
