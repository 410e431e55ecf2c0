package main

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/isthmus-mesh/isthmus/trust"
)

// serveTLS makes handshakes until the test ends, and returns where.
func serveTLS(t *testing.T, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				_ = tls.Server(conn, config).Handshake()
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// svidOf has a cluster's authority issue one.
func svidOf(t *testing.T, c *trustCluster, id spiffeid.ID) *x509svid.SVID {
	t.Helper()
	key, csr, err := trust.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.authority.Issue(csr, id)
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}
}

func mustSVID(t *testing.T, i *trust.Identity) *x509svid.SVID {
	t.Helper()
	svid, err := i.SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid
}
