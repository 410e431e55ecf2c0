package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
)

// Probe makes a TLS handshake over conn and returns what the server shows, leaf first. It verifies nothing, shows nothing itself, and sends nothing:
// it is for explaining. The connection is of no use after that.
func Probe(ctx context.Context, conn net.Conn, serverName string, protocols []string) ([]*x509.Certificate, error) {
	var shown []*x509.Certificate
	client := tls.Client(conn, &tls.Config{
		MinVersion: tls.VersionTLS12, // what others serve is to be explained too
		ServerName: serverName, NextProtos: protocols, SessionTicketsDisabled: true,
		InsecureSkipVerify: true, //nolint:gosec // G402: nothing is trusted that comes of it
		VerifyConnection: func(cs tls.ConnectionState) error {
			shown = cs.PeerCertificates
			return nil
		},
	})
	err := client.HandshakeContext(ctx)
	if len(shown) > 0 { // a server that wants to know who asks may have gone on to refuse us
		return shown, nil
	}
	if err == nil {
		err = errors.New("the server shows no certificate")
	}
	return nil, err
}
