package configstream

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
)

// ServerConfig is what a Server is made from. Peer and Admit are required.
type ServerConfig struct {
	Log *slog.Logger // default: none

	// Peer says who is at the other end of a stream, by its context.
	Peer func(ctx context.Context) (spiffeid.ID, error)
	// Admit decides whether id may be what its Hello says, and which keys it may see. It is asked at a stream's Hello, and again before
	// anything of a new World is sent and after each Readmit, by that stream's goroutine: the Hello is without its lists then. visible is
	// asked anew for each World, by one goroutine a stream. What is addressed to another receiver (ReceiverOf) is never sent, whatever
	// visible says. An error ends the stream with PermissionDenied and its text; ErrUndecided refuses a Hello with Unavailable, and
	// leaves a stream that is open as it is.
	Admit func(id spiffeid.ID, h *configv1.Hello) (visible func(key string) bool, err error)

	// Lease divides shared quotas: what the program that id is, and that says to be receiver, may let through, and for how long. It must not
	// block. nil: there is nothing to divide.
	Lease func(id spiffeid.ID, receiver string, demands Demands) (Shares, time.Duration)

	// OnConnect, OnReport and OnDisconnect tell of a stream, in this order, from its goroutine: they must not block.
	// A program that comes back may be connected anew before its old stream is known to be dead. Each may be nil.
	OnConnect    func(*Session)
	OnReport     func(*Session, *configv1.Report)
	OnDisconnect func(*Session, error)
	// OnApplied tells that Session.Applied has grown. It is called as OnReport is; may be nil.
	OnApplied func(*Session)

	HelloTimeout time.Duration // for the first message; default 10 s
	SendTimeout  time.Duration // for one message to leave; default 10 s
	MaxStreams   int           // at a time; default 20,000
}

// Session is one client's stream.
type Session struct {
	ID       spiffeid.ID
	Hello    *configv1.Hello // not to be changed
	Receiver string          // as ReceiverOf(Hello)
	Since    time.Time

	superseded chan struct{} // closed by supersede
	supersede  func()        // called when the receiver has too many newer streams; any number of times

	mu       sync.Mutex
	services map[topology.ServiceName]struct{} // guarded by mu
	sent     uint64                            // guarded by mu: the revision of the last cut
	applied  uint64                            // guarded by mu
}

// Applied returns up to which revision (of Server.Set) the program says that everything is in force; 0: it has not said. What has not
// changed for it is not sent to it: a World that has brought it nothing new does not count.
func (s *Session) Applied() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applied
}

// apply notes what the program says is in force, and reports whether that is news. What it was not sent can't be.
func (s *Session) apply(revision uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	revision = min(revision, s.sent)
	if revision <= s.applied {
		return false
	}
	s.applied = revision
	return true
}

// Services returns what the client is subscribed to, ordered by name.
func (s *Session) Services() []topology.ServiceName {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.services), topology.ServiceName.Compare)
}

// note keeps what the view has, for those names.
func (s *Session) note(v *view, names iter.Seq[topology.ServiceName]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range names {
		if _, ok := v.services[name]; ok {
			s.services[name] = struct{}{}
		} else {
			delete(s.services, name)
		}
	}
}

// Server is the control's end of the stream: it sends each client what it may see of the present World.
type Server struct {
	configv1.UnimplementedConfigServer

	cfg    ServerConfig
	world  live.Value[*World]
	judged live.Value[uint64] // grows with each Readmit
	hellos hellos
	stop   chan struct{} // closed by Close

	mu       sync.Mutex
	revision uint64                // guarded by mu
	sessions map[string][]*Session // guarded by mu: by receiver, oldest first
	streams  int                   // guarded by mu
	closed   bool                  // guarded by mu
	running  sync.WaitGroup        // Add is guarded by mu
}

// maxStreamsOfReceiver is how many streams one program has at a time: one, and those of which it is not known yet that they are dead. The
// newest are kept.
const maxStreamsOfReceiver = 3

var (
	_ configv1.ConfigServer = (*Server)(nil)

	errClosing    = status.Error(codes.Unavailable, "control is stopping")
	errSuperseded = status.Errorf(codes.ResourceExhausted, "%d newer streams of the same program are open", maxStreamsOfReceiver)
)

// NewServer returns a Server without a World: clients that connect wait for the first.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.HelloTimeout <= 0 {
		cfg.HelloTimeout = 10 * time.Second
	}
	if cfg.SendTimeout <= 0 {
		cfg.SendTimeout = 10 * time.Second
	}
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = 20_000
	}
	return &Server{cfg: cfg, stop: make(chan struct{}), sessions: make(map[string][]*Session)}
}

// Set puts w in force and wakes every stream. It returns the number of w, which grows with each. w must not be in force elsewhere.
func (s *Server) Set(w *World) (revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	w.revision = s.revision
	before := s.world.Load()
	for key, err := range w.withheld {
		if before == nil || before.withheld[key] == nil {
			s.cfg.Log.Error("resource withheld", "key", clip(key), "error", err)
		}
	}
	s.world.Store(w)
	return s.revision
}

// Readmit has every stream ask Admit again: who may exist has changed.
func (s *Server) Readmit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.judged.Store(s.judged.Load() + 1)
}

// Sessions returns the present sessions, oldest first.
func (s *Server) Sessions() []*Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Session, 0, s.streams)
	for _, of := range s.sessions {
		out = append(out, of...)
	}
	slices.SortFunc(out, func(a, b *Session) int { return a.Since.Compare(b.Since) })
	return out
}

// Close ends every stream with Unavailable, refuses new ones, and waits until nothing runs.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Stream serves one client. gRPC calls it.
func (s *Server) Stream(rpc grpc.BidiStreamingServer[configv1.Request, configv1.Response]) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	id, err := s.cfg.Peer(rpc.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	st := newStream(s, rpc, id)
	err = st.serve(rpc.Context())
	if errors.Is(err, context.Canceled) { // the client went
		err = status.FromContextError(err).Err()
	}
	return err
}

func (s *Server) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosing
	}
	if s.streams >= s.cfg.MaxStreams {
		return status.Error(codes.ResourceExhausted, "too many config streams")
	}
	s.streams++
	s.running.Add(1)
	return nil
}

func (s *Server) leave() {
	s.mu.Lock()
	s.streams--
	s.mu.Unlock()
	s.running.Done()
}

// child runs f, which ends soon after the handler has returned; Close waits for it.
func (s *Server) child(f func()) { s.running.Go(f) }

func (s *Server) connect(session *Session) {
	s.mu.Lock()
	of := append(s.sessions[session.Receiver], session)
	s.sessions[session.Receiver] = of
	for _, old := range of[:max(0, len(of)-maxStreamsOfReceiver)] {
		old.supersede()
	}
	s.mu.Unlock()
	if s.cfg.OnConnect != nil {
		s.cfg.OnConnect(session)
	}
}

func (s *Server) disconnect(session *Session, err error) {
	s.mu.Lock()
	of := slices.DeleteFunc(s.sessions[session.Receiver], func(o *Session) bool { return o == session })
	if s.sessions[session.Receiver] = of; len(of) == 0 {
		delete(s.sessions, session.Receiver)
	}
	s.mu.Unlock()
	if s.cfg.OnDisconnect != nil {
		s.cfg.OnDisconnect(session, err)
	}
}
