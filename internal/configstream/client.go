package configstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
)

// How a client comes back to a control that is away.
const (
	firstBackOff = 100 * time.Millisecond
	lastBackOff  = 5 * time.Second
	// answerTimeout is how long a control that is there may take to answer for a service.
	answerTimeout = 10 * time.Second
	// maxFrame is what stands around a Hello in a message, at most.
	maxFrame = 64
)

// Conn is a connection to control. *grpc.ClientConn is one.
type Conn interface {
	grpc.ClientConnInterface
	io.Closer
}

// ClientConfig is what a Client is made from. Hello and Dial are required.
type ClientConfig struct {
	// Hello says who this is; its have and services are filled in.
	Hello *configv1.Hello
	// Dial returns a new connection, made with DialOptions, that the client closes. It may wait.
	Dial func(ctx context.Context) (Conn, error)
	// StateFile is where the last good state is kept, for a start without control; empty: nowhere. Its directory must exist.
	StateFile string
	// Patience is how long Subscribe waits for a connection while control is away; default 2 s.
	Patience time.Duration
	Log      *slog.Logger     // default: none
	Now      func() time.Time // default: time.Now
}

// Status is how a client stands with control.
type Status struct {
	Connected bool      // a cut was applied on the present stream
	Err       error     // why the last stream ended or could not be opened; nil once connected
	Attempts  int       // streams that ended or failed to open since it was last connected
	Since     time.Time // of the last change of Connected
}

// Client is a program's end of the stream: it holds the program's part of the configuration, whether control is there or not.
type Client struct {
	cfg       ClientConfig
	snapshots live.Value[*topology.Snapshot]
	bundles   live.Value[Bundles]
	status    live.Value[Status]
	cuts      live.Value[Cut]

	stream uint64 // owned by Run: how many streams were opened
	store  *store // owned by Run, once it runs
	saver  *saver
	conn   atomic.Pointer[Conn] // of the present stream; nil while there is none

	account func(all bool) *configv1.Report // set before Run; nil: there is none to give

	mu       sync.Mutex
	services map[topology.ServiceName]*subscription // guarded by mu
	asked    uint64                                 // guarded by mu; a clock for subscription.asked
	outbox   outbox                                 // guarded by mu
	problem  error                                  // guarded by mu; why the last cut was refused
}

// NewClient returns a client with the state that was kept, if any. A file that can't be used is set aside, not an error.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 2 * time.Second
	}
	if cfg.Dial == nil {
		return nil, errors.New("configstream: no Dial")
	}
	if _, err := ReceiverOf(cfg.Hello); err != nil {
		return nil, err
	}
	cfg.Hello = proto.CloneOf(cfg.Hello)
	cfg.Hello.Have, cfg.Hello.Services = nil, nil
	c := &Client{cfg: cfg, store: newStore(), services: make(map[topology.ServiceName]*subscription)}
	c.outbox.wake = make(chan struct{}, 1)
	c.status.Store(Status{Since: cfg.Now()})
	if cfg.StateFile != "" {
		c.saver = newSaver(cfg.StateFile, cfg.Log)
		c.restore()
	}
	return c, nil
}

// Snapshots holds the present snapshot; nil until the first complete cut, unless one was kept on disk.
func (c *Client) Snapshots() *live.Value[*topology.Snapshot] { return &c.snapshots }

// Bundles holds what is accepted of each trust domain; nil as long as there is no snapshot.
func (c *Client) Bundles() *live.Value[Bundles] { return &c.bundles }

// Cut is which cut is in force: of which stream, and its revision. The zero Cut is none that control has sent since the start.
type Cut struct{ stream, revision uint64 }

// Cuts holds the cut that Snapshots and Bundles are of, or one before it: load it first.
func (c *Client) Cuts() *live.Value[Cut] { return &c.cuts }

// Applied tells control that the program has put in force what it loaded after that cut. What another stream than the present one has
// brought is not told: each control counts anew.
func (c *Client) Applied(cut Cut) {
	if cut == (Cut{}) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outbox.apply(cut)
}

// Status holds how the client stands with control.
func (c *Client) Status() *live.Value[Status] { return &c.status }

// Connected reports whether the state is control's present word.
func (c *Client) Connected() bool { return c.status.Load().Connected }

// Problems returns what is wrong now: control out of reach, or a configuration that was refused. None: all is well.
func (c *Client) Problems() []error {
	var out []error
	if s := c.status.Load(); s.Err != nil {
		out = append(out, s.Err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.problem != nil {
		out = append(out, c.problem)
	}
	return out
}

// Report tells control r, now or when it is there. Only the last report counts; control hears it again after a reconnect.
func (c *Client) Report(r *configv1.Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outbox.report(proto.CloneOf(r))
}

// Run keeps the stream to control open until ctx ends, and then keeps the state on disk.
func (c *Client) Run(ctx context.Context) error {
	var children sync.WaitGroup
	defer children.Wait()
	if c.saver != nil {
		// It ends after the last cut was applied, which is after ctx has ended.
		saving, end := context.WithCancel(context.WithoutCancel(ctx))
		defer end()
		children.Go(func() { c.saver.run(saving) })
	}
	backOff := firstBackOff
	for ctx.Err() == nil {
		applied, err := c.connect(ctx)
		if ctx.Err() != nil {
			break
		}
		if applied {
			backOff = firstBackOff
		}
		c.failed(ctx, err)
		wait := backOff/2 + rand.N(backOff/2+1) //nolint:gosec // jitter needs no secrecy
		backOff = min(2*backOff, lastBackOff)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	c.status.Store(Status{Err: context.Cause(ctx), Since: c.cfg.Now()})
	return nil
}

// failed notes that there is no stream. Streams end now and then, and come back: what is worth a warning is one that stays
// away, and that less and less often.
func (c *Client) failed(ctx context.Context, err error) {
	if err == nil {
		err = errors.New("control ended the stream")
	}
	s := c.status.Load()
	if s.Connected {
		c.cfg.Log.InfoContext(ctx, "config stream ended", "error", err)
		s = Status{Since: c.cfg.Now()}
	}
	s.Err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	s.Attempts++
	c.status.Store(s)
	if s.Attempts > 1 && s.Attempts&(s.Attempts-1) == 0 { // 2, 4, 8, …
		c.cfg.Log.WarnContext(ctx, "no config stream", "error", err, "attempts", s.Attempts, "since", s.Since)
	}
}

// connected notes that a cut was applied.
func (c *Client) connected(ctx context.Context) {
	if c.status.Load().Connected {
		return
	}
	c.cfg.Log.InfoContext(ctx, "config stream up", "resources", len(c.store.held))
	c.status.Store(Status{Connected: true, Since: c.cfg.Now()})
}

// publish makes the store's state the present one.
func (c *Client) publish(v published) {
	if v.bundlesChanged || c.bundles.Load() == nil {
		c.bundles.Store(v.bundles)
	}
	if v.snapshot != c.snapshots.Load() {
		c.snapshots.Store(v.snapshot)
	}
}

// restore takes up the state that was kept on disk.
func (c *Client) restore() {
	kept, err := c.saver.load(c.cfg.Hello)
	if err != nil || kept == nil {
		return
	}
	v, err := c.store.apply(stage{upsert: kept.resources})
	if err != nil {
		c.saver.setAside(err)
		return
	}
	if !kept.sameVersion {
		c.store.forgetVersions() // an older program may have dropped what this one understands: ask for all of it
	}
	for _, name := range kept.services {
		c.asked++
		s := &subscription{asked: c.asked, answered: make(chan struct{})}
		if c.store.has(ServiceKey(name)) {
			s.answer(true)
		}
		c.services[name] = s
	}
	c.publish(v)
	c.cfg.Log.Info("configuration taken from disk",
		"resources", len(kept.resources), "services", len(kept.services), "saved", kept.saved)
}

// hello is the first message of a stream, and resets what is to be sent after it. When what is held is too much to be
// listed, it says so: the first cut is then all there is.
func (c *Client) hello() (h *configv1.Hello, replace bool) {
	h = proto.CloneOf(c.cfg.Hello)
	h.Have = c.store.have()
	c.mu.Lock()
	for _, name := range c.names() {
		h.Services = append(h.Services, name.String())
	}
	c.stream++
	c.outbox.reset(c.stream)
	c.mu.Unlock()
	have, _ := limitsOf(h.GetProgram())
	if replace = len(h.GetHave()) > have || proto.Size(h) > MaxReceive-maxFrame; replace {
		h.Have = nil
	}
	return h, replace
}

// names returns the subscriptions, ordered. Called with mu held.
func (c *Client) names() []topology.ServiceName {
	out := make([]topology.ServiceName, 0, len(c.services))
	for n := range c.services {
		out = append(out, n)
	}
	slices.SortFunc(out, topology.ServiceName.Compare)
	return out
}
