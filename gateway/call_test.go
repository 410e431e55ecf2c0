package gateway

import (
	"crypto/tls"
	"io"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/trust"
)

// call is a sidecar's stream.
type call struct {
	*tls.Conn
	raw *memConn
}

// dial connects a workload of the gateway's cluster to it.
func (g *testGateway) dial() *call {
	g.c.w.t.Helper()
	c, err := g.tryDial("/ns/shop/sa/web")
	if err != nil {
		g.c.w.t.Fatal(err)
	}
	return c
}

func (g *testGateway) tryDial(path string) (*call, error) {
	return g.dialAs(g.c.identity(path))
}

func (g *testGateway) dialAs(identity *trust.Identity) (*call, error) {
	raw, err := g.c.w.tcp.dial(g.address)
	if err != nil {
		return nil, err
	}
	// As the gateway itself: a cut must not read as an end.
	conn := tls.Client(wholeConn{raw}, trust.ClientConfig(trust.TLS{
		Identity: identity, Bundles: g.c.bundles, Policy: trust.AllowGateways(g.c.domain), Protocols: []string{preamble.ALPNStream},
	}))
	if err := conn.Handshake(); err != nil {
		cut(raw)
		return nil, err
	}
	return &call{conn, raw}, nil
}

// open starts a stream with its first bytes in the same flight.
func (g *testGateway) open(cluster, service string, first string) *call {
	g.c.w.t.Helper()
	c := g.dial()
	p := preamble.Preamble{Cluster: clusterName(cluster), Service: serviceName(service), Port: 80}
	if _, err := c.Write(append(p.Append(nil), first...)); err != nil {
		g.c.w.t.Fatal(err)
	}
	return c
}

// ask opens a stream, reads the answer, and when it is open sends first through and back.
func (g *testGateway) ask(cluster, service, first string) (path []string, echoed string, err error) {
	g.c.w.t.Helper()
	c := g.open(cluster, service, first)
	defer func() { _ = c.Close() }()
	reply, err := preamble.ReadReply(c)
	if err != nil {
		return nil, "", err
	}
	_ = c.CloseWrite()
	all, err := io.ReadAll(c)
	return reply.Path, string(all), err
}
