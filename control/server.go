package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/internal/openfiles"
	"github.com/isthmus-mesh/isthmus/trust"
)

const (
	handshakeTimeout = 10 * time.Second
	stopGrace        = 2 * time.Second // for calls in flight, when control stops
	// callTimeout bounds a Join or Renew from its headers to its answer, the time that its message takes to come included. The platform
	// may be asked meanwhile who somebody is.
	callTimeout = 10 * time.Second
	// maxHeaders bounds the headers of a call, in bytes after HPACK (RFC 7541), by which a byte may become thousands. gRPC's own and a
	// trace context have less than 1 KiB.
	maxHeaders = 8 << 10
)

// serveGRPC serves the config stream and the identity service until ctx ends.
func (c *Control) serveGRPC(ctx context.Context) error {
	policy := trust.AllowDomain(c.cfg.Domain)
	config := trust.ServerConfig(trust.TLS{
		Identity: c.identity, Bundles: c.bundles, Policy: policy, Protocols: []string{"h2"},
		AllowAnonymous: true, // whoever joins has no SVID yet; what needs one asks for it
		Now:            c.cfg.Now,
	})
	server := grpc.NewServer(append(configstream.ServerOptions(),
		grpc.Creds(guarded{credentials.NewTLS(config), c.guard, policy}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.InTapHandle(new(calls).limit),
	)...)
	configv1.RegisterConfigServer(server, c.stream)
	identityv1.RegisterIdentityServer(server, &identityServer{
		directory: c.directory, tokens: c.tokens, issuer: c.issuer(), authority: c.authority, peer: c.peerOf, log: c.cfg.Log,
		attestor: c.cfg.Attestor, attestations: newAttestations(),
	})
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		c.stream.Close()
		graceful := make(chan struct{})
		go func() {
			defer close(graceful)
			server.GracefulStop()
		}()
		select {
		case <-graceful:
		case <-time.After(stopGrace):
			server.Stop() // ends what is in flight, and GracefulStop with it
			<-graceful
		}
	})
	err := server.Serve(newGate(c.cfg.GRPC, limitsFor(openfiles.Limit()), c.metrics.shed))
	if stop() { // ctx has not ended: the listener failed
		c.stream.Close()
		server.Stop()
		return fmt.Errorf("control: gRPC: %w", err)
	}
	<-stopped
	return nil
}

// maxCalls is how many calls that are no stream are served at a time. gRPC holds a call's message, of up to configstream.MaxReceive, before
// anybody is asked: × maxCalls, half a GiB at most. One takes a millisecond, and who is turned away comes again.
const maxCalls = 128

// calls are those that are no stream.
type calls struct{ now atomic.Int64 }

// limit bounds how many there are, and the time of each. It is asked once a call's headers are there: an interceptor would be asked
// after its message has come, if ever.
func (c *calls) limit(ctx context.Context, info *tap.Info) (context.Context, error) {
	if info.FullMethodName == configv1.Config_Stream_FullMethodName {
		return ctx, nil // bounded by itself: ServerConfig.HelloTimeout, SendTimeout
	}
	if c.now.Add(1) > maxCalls {
		c.now.Add(-1)
		return nil, status.Error(codes.ResourceExhausted, "too many calls at a time: try again")
	}
	limited, cancel := context.WithTimeout(ctx, callTimeout)
	context.AfterFunc(ctx, func() { // gRPC cancels ctx when the call ends
		cancel()
		c.now.Add(-1)
	})
	return limited, nil
}

// peerOf returns who is at the other end of a call. It was verified by the handshake, is watched by the guard since, and is verified again, an
// authority above it too: the guard closes the connections of those who no longer pass a moment later.
func (c *Control) peerOf(ctx context.Context) (trust.Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return trust.Peer{}, trust.ErrNoPeer
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return trust.Peer{}, trust.ErrNoPeer
	}
	who, err := trust.PeerOf(info.State)
	switch {
	case err != nil:
		return trust.Peer{}, err
	case !who.ID.MemberOf(c.cfg.Domain):
		return trust.Peer{}, fmt.Errorf("%s is not of %s", who.ID, c.cfg.Domain.Name())
	case !c.cfg.Now().Before(who.NotAfter):
		return trust.Peer{}, errors.New("the SVID of this connection has ended")
	}
	// What is revoked a moment ago is not in force for connections yet.
	own := trust.NewBundles()
	own.Set(c.cfg.Domain, c.ownBundle())
	return own.Verify(info.State.PeerCertificates, c.cfg.Now())
}

func (c *Control) peerID(ctx context.Context) (spiffeid.ID, error) {
	p, err := c.peerOf(ctx)
	return p.ID, err
}

// guarded are TLS credentials whose connections are closed when their peer would be refused, and when its SVID ends.
type guarded struct {
	credentials.TransportCredentials
	guard  *trust.Guard
	policy trust.Policy
}

// ServerHandshake hands connections of those who have shown an SVID to the guard. Those of others become guests of the gate.
func (g guarded) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := g.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	v, _ := raw.(*visitor)
	t, ok := info.(credentials.TLSInfo)
	if !ok || len(t.State.PeerCertificates) == 0 {
		if v != nil {
			if err = v.guest(); err != nil {
				return nil, nil, err // gRPC closes raw
			}
		}
		return conn, info, nil
	}
	if v != nil {
		who, err := trust.PeerOf(t.State)
		if err == nil {
			err = v.known(who.ID)
		}
		if err != nil {
			return nil, nil, err // gRPC closes raw
		}
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
