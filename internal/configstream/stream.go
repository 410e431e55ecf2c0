package configstream

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// How fast a client may ask and report. One that is faster is read slower, which its own flow control tells it.
const (
	requestsPerSecond = 50
	requestBurst      = 100
	maxLinkReports    = 1_000
)

// maxHelloRest bounds what a Hello says besides its lists, in bytes: names and addresses, which are kept as long as the stream.
const maxHelloRest = 8 << 10

// stream is the server's end of one client's stream. Its goroutine, the handler's, owns the view; two children receive and
// send, because neither can be waited for with a time-out otherwise. They end when the handler has returned.
type stream struct {
	server   *Server
	rpc      grpc.BidiStreamingServer[configv1.Request, configv1.Response]
	id       spiffeid.ID
	requests chan *configv1.Request
	gone     chan error    // one error, when there is nothing more to receive
	done     chan struct{} // closed when the handler returns

	// What the program was admitted by last.
	world  *World
	judged uint64
}

func newStream(s *Server, rpc grpc.BidiStreamingServer[configv1.Request, configv1.Response], id spiffeid.ID) *stream {
	return &stream{
		server: s, rpc: rpc, id: id,
		requests: make(chan *configv1.Request), gone: make(chan error, 1), done: make(chan struct{}),
	}
}

// serve runs the stream until its client goes, breaks the rules or falls behind, or the server closes.
func (st *stream) serve(ctx context.Context) error {
	defer close(st.done)
	hello, err := st.hello(ctx)
	if err != nil {
		return err
	}
	receiver, err := ReceiverOf(hello)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	st.world, st.judged = st.server.world.Load(), st.server.judged.Load() // before they are asked for: what comes later is judged again
	visible, err := st.server.cfg.Admit(st.id, hello)
	switch {
	case errors.Is(err, ErrUndecided):
		return status.Error(codes.Unavailable, err.Error())
	case err != nil:
		st.server.cfg.Log.WarnContext(ctx, "config stream refused", "peer", st.id.String(), "receiver", receiver, "error", err)
		return status.Error(codes.PermissionDenied, err.Error())
	}
	v, err := newView(hello, receiver, visible)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	// The list of what the client holds is its affair no longer: the view has it, and a Session lives long.
	hello.Have, hello.Services = nil, nil
	if err = atMost("bytes besides the lists of a hello", proto.Size(hello), maxHelloRest); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	session := &Session{ID: st.id, Hello: hello, Receiver: receiver, Since: time.Now(), superseded: make(chan struct{})}
	session.supersede = sync.OnceFunc(func() { close(session.superseded) })
	session.services = make(map[topology.ServiceName]struct{}, len(v.services))
	session.note(v, maps.Keys(v.services))
	logger := st.server.cfg.Log.With("peer", st.id.String(), "receiver", receiver)
	logger.InfoContext(ctx, "config stream opened", "version", hello.GetVersion(), "held", len(v.has), "services", len(v.services))
	st.server.connect(session)
	err = st.run(ctx, session, v)
	st.server.disconnect(session, err)
	logger.InfoContext(ctx, "config stream closed", "error", err)
	return err
}

// hello waits for the first message, once it is its turn. From then on, messages are received.
func (st *stream) hello(ctx context.Context) (*configv1.Hello, error) {
	timeout := time.NewTimer(st.server.cfg.HelloTimeout)
	defer timeout.Stop()
	done, err := st.server.hellos.wait(ctx, st.id, timeout.C, st.server.stop)
	if err != nil {
		return nil, err
	}
	defer done()
	st.server.child(func() { st.gone <- st.receive(ctx) })
	select {
	case r := <-st.requests:
		if r.GetHello() == nil {
			return nil, status.Error(codes.InvalidArgument, "want a hello first")
		}
		return r.GetHello(), nil
	case err := <-st.gone:
		return nil, err
	case <-timeout.C:
		return nil, status.Error(codes.DeadlineExceeded, "no hello")
	case <-st.server.stop:
		return nil, errClosing
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// run sends differences until the end. It looks at the World only when it is able to send: what came and went while the
// client was slow is never seen.
func (st *stream) run(ctx context.Context, session *Session, v *view) error {
	for {
		changed, rejudged := st.server.world.Changed(), st.server.judged.Changed()
		w := st.server.world.Load()
		if err := st.readmit(ctx, session, v, w); err != nil {
			return err
		}
		if w != nil {
			if c := v.difference(w); c.changed {
				for m := range c.messages() {
					if err := st.send(ctx, session, m); err != nil {
						return err
					}
				}
				session.mu.Lock()
				session.sent = c.revision
				session.mu.Unlock()
			}
		}
		select {
		case <-changed:
		case <-rejudged:
		case <-session.superseded:
			return errSuperseded
		case r := <-st.requests:
			if err := st.handle(session, v, r); err != nil {
				return err
			}
		case err := <-st.gone:
			return err
		case <-st.server.stop:
			return errClosing
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readmit asks again whether the program may be, when that may have changed: before anything of w is sent.
func (st *stream) readmit(ctx context.Context, session *Session, v *view, w *World) error {
	judged := st.server.judged.Load()
	if w == st.world && judged == st.judged {
		return nil
	}
	st.world, st.judged = w, judged
	visible, err := st.server.cfg.Admit(st.id, session.Hello)
	switch {
	case errors.Is(err, ErrUndecided): // that nothing is known of it is no word against it
		return nil
	case err != nil:
		st.server.cfg.Log.WarnContext(ctx, "config stream ended: the program may no longer be",
			"peer", st.id.String(), "receiver", session.Receiver, "error", err)
		return status.Error(codes.PermissionDenied, err.Error())
	}
	v.visible = visible
	return nil
}

func (st *stream) handle(session *Session, v *view, r *configv1.Request) error {
	switch m := r.GetMessage().(type) {
	case *configv1.Request_Subscribe:
		if err := v.subscribe(m.Subscribe.GetAdd(), m.Subscribe.GetRemove()); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		session.note(v, maps.Keys(v.touched))
		if v.last == nil { // the first cut compares everything
			clear(v.touched)
		}
	case *configv1.Request_Report:
		if err := checkReport(m.Report); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		if st.server.cfg.OnReport != nil {
			st.server.cfg.OnReport(session, m.Report)
		}
	case *configv1.Request_Applied:
		if session.apply(m.Applied.GetRevision()) && st.server.cfg.OnApplied != nil {
			st.server.cfg.OnApplied(session)
		}
	case *configv1.Request_Hello:
		return status.Error(codes.InvalidArgument, "a second hello")
	default: // of a newer client
	}
	return nil
}

// checkReport holds a report to what one may tell of.
func checkReport(r *configv1.Report) error {
	callers := 0
	for _, s := range r.GetServed() {
		callers += len(s.GetCallers())
	}
	return cmp.Or(
		atMost("links", len(r.GetLinks()), maxLinkReports),
		atMost("counts of traffic", len(r.GetTraffic()), MaxTraffic),
		atMost("services served", len(r.GetServed()), MaxServed),
		atMost("callers", callers, MaxServedCallers),
		atMost("turns", len(r.GetTurns()), MaxTurns),
	)
}

// receive hands over what the client says, no faster than it may, until there is no more.
func (st *stream) receive(ctx context.Context) error {
	limit := rate.NewLimiter(requestsPerSecond, requestBurst)
	for {
		r, err := st.rpc.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case st.requests <- r:
		case <-st.done:
			return nil
		}
		if err := limit.Wait(ctx); err != nil {
			return ctx.Err()
		}
	}
}

// send sends one message within the time-out. A client that does not take it in time loses its stream, and comes back.
func (st *stream) send(ctx context.Context, session *Session, m *configv1.Response) error {
	sent := make(chan error, 1)
	st.server.child(func() { sent <- st.rpc.Send(m) })
	timeout := time.NewTimer(st.server.cfg.SendTimeout)
	defer timeout.Stop()
	select {
	case err := <-sent:
		return err
	case <-timeout.C:
		return status.Errorf(codes.DeadlineExceeded, "the client took no message for %v", st.server.cfg.SendTimeout)
	case <-session.superseded:
		return errSuperseded
	case <-st.server.stop:
		return errClosing
	case <-ctx.Done():
		return ctx.Err()
	}
}
