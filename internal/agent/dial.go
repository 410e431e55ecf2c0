package agent

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/trust"
)

// connectTimeout bounds TCP and TLS of one attempt to reach control.
const connectTimeout = 5 * time.Second

// dialStream is the config stream's Dial. It waits until there is an SVID that control may let in.
func (a *Agent) dialStream(ctx context.Context) (configstream.Conn, error) {
	for {
		changed := a.Identity.Changed()
		if svid, err := a.Identity.SVID(); err == nil && a.cfg.Now().Before(svid.Certificates[0].NotAfter) {
			return a.dial(a.Identity)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// dial makes a connection to control, as identity or as nobody (nil). Control, and nobody else, must be at the other end.
func (a *Agent) dial(identity *trust.Identity, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	policy := trust.AllowControl(a.cfg.TrustDomain)
	config := trust.ClientConfig(trust.TLS{
		Identity:  identity,
		Bundles:   a.Bundles,
		Policy:    policy,
		Protocols: []string{"h2"},
		Now:       a.cfg.Now,
	})
	options := append(append(configstream.DialOptions(), more...),
		grpc.WithTransportCredentials(guarded{credentials.NewTLS(config), a.Guard, policy}),
		grpc.WithContextDialer(a.cfg.Dial),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
	)
	// The dialer resolves the name: each attempt asks anew.
	return grpc.NewClient("passthrough:///"+a.cfg.Control, options...)
}

// guarded are TLS credentials whose connections are closed when their peer would be refused.
type guarded struct {
	credentials.TransportCredentials
	guard  *trust.Guard
	policy trust.Policy
}

// ClientHandshake hands the connection to the guard.
func (g guarded) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := g.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	t, ok := info.(credentials.TLSInfo)
	if !ok {
		return conn, info, nil
	}
	release := g.guard.Watch(t.State, g.policy, func(error) { _ = conn.Close() })
	return &watched{Conn: conn, release: sync.OnceFunc(release)}, info, nil
}

// Clone keeps the guard.
func (g guarded) Clone() credentials.TransportCredentials {
	g.TransportCredentials = g.TransportCredentials.Clone()
	return g
}

// watched is a connection that the guard forgets when it is closed.
type watched struct {
	net.Conn
	release func()
}

// Close closes the connection.
func (w *watched) Close() error {
	w.release()
	return w.Conn.Close()
}
