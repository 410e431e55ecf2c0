package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	workloadv1 "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Limits on what a caller sends. It is a process of the same machine, and not a friend for that.
const (
	maxRequest       = 32 << 10 // bytes of a message: a JWT-SVID (maxToken) and an audience
	maxHeaders       = 8 << 10  // bytes of headers, unpacked
	maxStreams       = 16       // calls at a time of one connection
	handshakeTimeout = 5 * time.Second
	connectionBuffer = 4 << 10 // bytes, each way
	stopGrace        = time.Second
)

// securityHeader must be in every call: no web page, or other program that is talked into sending a request, can set it (SPIFFE Workload
// Endpoint, section 3).
const securityHeader = "workload.spiffe.io"

// Serve answers on l, a Unix socket, until ctx ends, and closes it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer(
		grpc.Creds(peerCredentials{s}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(maxRequest), grpc.MaxHeaderListSize(maxHeaders), grpc.MaxConcurrentStreams(maxStreams),
		grpc.WaitForHandlers(true),
		grpc.ReadBufferSize(connectionBuffer), grpc.WriteBufferSize(connectionBuffer),
		grpc.UnaryInterceptor(s.admitCall), grpc.StreamInterceptor(s.admitStream),
	)
	workloadv1.RegisterSpiffeWorkloadAPIServer(server, s)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		close(s.stop) // ends the streams
		graceful := make(chan struct{})
		go func() {
			defer close(graceful)
			server.GracefulStop()
		}()
		select {
		case <-graceful:
		case <-time.After(stopGrace):
			server.Stop()
			<-graceful
		}
	})
	err := server.Serve(l)
	if stop() { // ctx has not ended: the listener failed
		close(s.stop)
		server.Stop()
		s.senders.Wait()
		return fmt.Errorf("workload: %w", err)
	}
	<-stopped
	s.senders.Wait()
	return nil
}

func (s *Server) admitCall(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := admit(ctx); err != nil {
		return nil, err
	}
	return next(ctx, r)
}

func (s *Server) admitStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := admit(stream.Context()); err != nil {
		return err
	}
	return next(srv, stream)
}

// admit refuses calls without the security header.
func admit(ctx context.Context) error {
	if h := metadata.ValueFromIncomingContext(ctx, securityHeader); len(h) != 1 || h[0] != "true" {
		return status.Errorf(codes.InvalidArgument, "the header %s: true is missing: this is the SPIFFE Workload API", securityHeader)
	}
	return nil
}

var errClosing = status.Error(codes.Unavailable, "the server stops")

// view is what a caller may see at one moment.
type view struct {
	caller Caller
	ids    []Identity
	now    time.Time
	lasts  time.Duration // how long it may be told if nothing changes: until an SVID ends
}

// need is what a caller must have for a call.
type need bool

const (
	needsEntitlement need = false // an identity, be there an SVID for it now or not: who only verifies others needs none
	needsSVID        need = true
)

// look returns what a caller may see now. changed is closed when that may be something else.
func (s *Server) look(c Caller, n need) (v view, changed [2]<-chan struct{}, err error) {
	changed[1] = s.cfg.Bundles.Changed() // before the look, so that a change during it is seen
	v = view{caller: c, now: s.cfg.Now(), lasts: longestLook}
	if err = c.check(); err != nil {
		return v, changed, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	ids, changedIDs, err := s.cfg.Source.Identities(c)
	changed[0] = changedIDs
	switch {
	case n == needsEntitlement && (err == nil && len(ids) > 0 || errors.Is(err, ErrNotYet)):
		if s.cfg.Bundles.Empty() {
			return v, changed, fmt.Errorf("%w, and nothing is known of any trust domain", ErrNotYet)
		}
		return v, changed, nil
	case err != nil:
		return v, changed, err
	}
	var unusable error
	for _, id := range ids {
		// What peers would refuse is no identity: it has ended, or was revoked.
		p, err := s.cfg.Bundles.Verify(id.SVID.Certificates, v.now)
		if err != nil {
			unusable = err
			continue
		}
		v.ids = append(v.ids, id)
		v.lasts = min(v.lasts, p.NotAfter.Sub(v.now))
	}
	switch {
	case len(v.ids) > 0:
		return v, changed, nil
	case unusable != nil:
		return v, changed, fmt.Errorf("%w: %w", ErrNotYet, unusable)
	default:
		return v, changed, ErrNobody
	}
}

// longestLook bounds how long it goes unnoticed that the clock was set, or the machine slept.
const longestLook = time.Minute

// wait returns what a caller may see. For one that has an identity and no SVID, it waits a while.
func (s *Server) wait(ctx context.Context, n need) (view, [2]<-chan struct{}, error) {
	c, ok := callerOf(ctx)
	if !ok {
		return view{}, [2]<-chan struct{}{}, status.Error(codes.Internal, "the caller is not known")
	}
	patience := time.NewTimer(s.cfg.Patience)
	defer patience.Stop()
	for {
		v, changed, err := s.look(c, n)
		if !errors.Is(err, ErrNotYet) {
			return v, changed, s.refusal(ctx, c, err)
		}
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-patience.C:
			return v, changed, s.refusal(ctx, c, err)
		case <-s.stop:
			return v, changed, errClosing
		case <-ctx.Done():
			return v, changed, status.FromContextError(ctx.Err()).Err()
		}
	}
}

// refusal words an error of look for the caller; nil stays nil.
func (s *Server) refusal(ctx context.Context, c Caller, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotYet):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, ErrNobody):
		if s.refusals.Allow() {
			s.cfg.Log.WarnContext(ctx, "workload API: caller refused", "caller", c.String(), "error", err)
		}
		return status.Errorf(codes.PermissionDenied, "%v (%s)", err, c)
	default:
		s.cfg.Log.ErrorContext(ctx, "workload API: caller can't be told who it is", "caller", c.String(), "error", err)
		return status.Error(codes.Unavailable, "can't tell now")
	}
}

// follow sends what tell makes of each view, until the caller goes, loses its identity or falls behind.
func follow[M proto.Message](s *Server, stream grpc.ServerStream, n need, tell func(view) (M, error)) error {
	ctx := stream.Context()
	var last M
	for sent := false; ; sent = true {
		v, changed, err := s.wait(ctx, n)
		if err != nil {
			return err
		}
		m, err := tell(v)
		if err != nil {
			return err
		}
		if !sent || !proto.Equal(m, last) {
			if err = s.send(ctx, stream, m); err != nil {
				return err
			}
			last = m
		}
		timer := time.NewTimer(v.lasts)
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-timer.C:
		case <-s.stop:
			err = errClosing
		case <-ctx.Done():
			err = status.FromContextError(ctx.Err()).Err()
		}
		timer.Stop()
		if err != nil {
			return err
		}
	}
}

// send sends one message within the time-out. A caller that does not take it in time loses its stream, and comes back.
func (s *Server) send(ctx context.Context, stream grpc.ServerStream, m proto.Message) error {
	sent := make(chan error, 1)
	s.senders.Go(func() { sent <- stream.SendMsg(m) }) // when the handler returns, gRPC ends it
	timeout := time.NewTimer(s.cfg.SendTimeout)
	defer timeout.Stop()
	select {
	case err := <-sent:
		return err
	case <-timeout.C:
		s.cfg.Log.WarnContext(ctx, "workload API: stream ended, its caller takes nothing")
		return status.Errorf(codes.DeadlineExceeded, "no message was taken for %v", s.cfg.SendTimeout)
	case <-s.stop:
		return errClosing
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}
