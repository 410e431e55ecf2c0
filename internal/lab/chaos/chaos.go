// Package chaos breaks a playground again and again, in every way that it knows, alone and in pairs, under load, and has the ledger
// (internal/ledger) judge what came of the requests. The same seed breaks the same things in the same order; each round can be had alone.
//
// The isthmus command's `playground chaos` and a test use it. Run owns all that it starts and leaves nothing behind.
package chaos

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
	"github.com/isthmus-mesh/isthmus/internal/ledger"
	"github.com/isthmus-mesh/isthmus/internal/netns"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

// ErrVerdict is what the error of a Run is that came to its end and found something.
var ErrVerdict = errors.New("the ledger does not add up")

// Config is how a run goes.
type Config struct {
	Faults int         // how many are injected, at least. Default 20.
	Seed   uint64      // what is broken, and when
	Only   *int        // the one round to have; nil: from the first on, until there were Faults
	Dir    string      // default: a temporary folder, removed in the end
	Lab    lab.Options // how programs are started; with the runtime Netns the WAN is broken too
	Rate   float64     // requests a second, of each of the two kinds. Default 50.
	Out    io.Writer   // what happens, for a person; default: nobody reads
}

// Report is what came of a run. Its JSON is the ledger file: fields are added, never changed.
type Report struct {
	Version    string         `json:"version"`
	Seed       uint64         `json:"seed"`
	Runtime    lab.Runtime    `json:"runtime"`
	Began      time.Time      `json:"began"`
	Ended      time.Time      `json:"ended"`
	Faults     int            `json:"faults"`
	ByKind     map[string]int `json:"by_kind"`
	Coverage   Coverage       `json:"coverage"`
	Ledger     ledger.Report  `json:"ledger"`
	PlainText  *netns.Heard   `json:"plain_text,omitempty"` // what was heard on the wires; absent: nobody listened
	P50        time.Duration  `json:"p50_ns"`
	P99        time.Duration  `json:"p99_ns"`
	Slowest    time.Duration  `json:"slowest_ns"`
	Verdict    string         `json:"verdict"` // pass or fail
	Reason     string         `json:"reason,omitempty"`
	Violations []Finding      `json:"violations"`
	Rounds     []Round        `json:"rounds"`
}

// Round is what was broken at one time.
type Round struct {
	Index    int       `json:"index"`
	Victim   string    `json:"victim"`
	Faults   []Fault   `json:"faults"`
	Began    time.Time `json:"began"`
	Healed   time.Time `json:"healed"`
	Requests int       `json:"requests"` // answered from when it began until it was healed
	Failed   int       `json:"failed"`   // of them, of any kind
}

// Fault is one that was injected.
type Fault struct {
	Kind string `json:"kind"`
	What string `json:"what"`
}

// Finding is a request of which the story does not hold, and how to have the round again in which it was made.
type Finding struct {
	ledger.Violation

	Round  int    `json:"round"` // its index; -1: before the first
	Repeat string `json:"repeat"`
}

// The caller, and the call. Two clusters answer, so that one can be broken at a time.
const (
	caller    = "eu/web"
	home      = "eu"
	target    = "http://checkout.shop.svc.clusterset.local/"
	service   = "checkout.shop"
	callers   = 16
	floor     = 0.25 // of what Rate would give
	settle    = 90 * time.Second
	grace     = 3 * time.Second
	normalWAN = "10ms~1ms"
	// How long a round's faults last.
	least = 200 * time.Millisecond
	most  = 1500 * time.Millisecond
)

type run struct {
	Config

	pg       *lab.Playground
	hands    [2]*lab.Playground // the same playground: each fault of a round has one for itself
	schedule *schedule
	secret   string // in each request, and on no wire
	report   Report
	tally    traffic.Tally

	mu      sync.Mutex
	clients []ledger.Entry // guarded by mu
	killed  []kill         // guarded by mu
}

// kill is when a copy's sidecar was killed.
type kill struct {
	cluster string
	at      time.Time
}

// Run breaks things until enough were broken, and judges. The error is ErrVerdict when the run came to its end and the ledger does not add up.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if cfg.Faults == 0 {
		cfg.Faults = 20
	}
	if cfg.Rate == 0 {
		cfg.Rate = 50
	}
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	if cfg.Lab.Runtime == "" {
		cfg.Lab.Runtime = lab.Local
	}
	var secret [12]byte
	_, _ = rand.Read(secret[:]) // never fails
	r := &run{Config: cfg, schedule: newSchedule(cfg.Seed, cfg.Lab.Runtime), secret: "secret-" + hex.EncodeToString(secret[:])}
	r.report = Report{
		Version: version.String(), Seed: cfg.Seed, Runtime: cfg.Lab.Runtime, Began: time.Now(), ByKind: make(map[string]int), Verdict: "fail",
		Violations: []Finding{}, Rounds: []Round{},
	}
	err := r.play(ctx)
	r.report.Ended = time.Now()
	if err != nil {
		r.report.Reason = err.Error()
		return r.report, err
	}
	r.report.Verdict = "pass"
	return r.report, nil
}

func (r *run) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.Out, "%8.2fs  %s\n", time.Since(r.report.Began).Seconds(), fmt.Sprintf(format, args...)) // for a person
}

func (r *run) play(ctx context.Context) (err error) {
	spec, err := lab.Sample(3)
	if err != nil {
		return err
	}
	if r.Dir == "" {
		if r.Dir, err = os.MkdirTemp("", "isthmus-chaos-"); err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(r.Dir) }()
	}
	r.Lab.Ledger = true
	if r.Lab.Runtime == lab.Netns {
		if r.Lab.Links, err = allPairs(spec, normalWAN); err != nil {
			return err
		}
	}
	r.say("starting 3 clusters (%s) in %s; seed %d", r.Lab.Runtime, r.Dir, r.Seed)
	r.pg, _, err = lab.Up(ctx, r.Dir, spec, r.Lab)
	if r.pg != nil {
		defer func() {
			err = errors.Join(err, r.pg.Down(context.WithoutCancel(ctx), grace, false))
			r.pg.Close()
		}()
	}
	if err != nil {
		return err
	}
	for i := range r.hands {
		if r.hands[i], err = lab.Open(r.Dir, r.Lab); err != nil {
			return err
		}
		defer r.hands[i].Close()
	}
	listener, err := r.listen(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	stop, err := r.load(ctx)
	if err != nil {
		return err
	}
	err = r.rounds(ctx)
	if e := stop(); err == nil {
		err = e
	}
	if listener != nil {
		heard := listener.Close()
		r.report.PlainText = &heard
	}
	if err != nil {
		return err
	}
	return r.judge(time.Since(began))
}

// listen listens on the wires, where there are any.
func (r *run) listen(ctx context.Context) (*netns.Eavesdropper, error) {
	if r.Lab.Runtime != lab.Netns {
		return nil, nil
	}
	return r.pg.Eavesdrop(ctx, r.secret)
}

// load starts requests that may be repeated, and as many that may not; stop waits for their answers.
func (r *run) load(ctx context.Context) (stop func() error, err error) {
	proxy, err := r.pg.ProxyOf(caller)
	if err != nil {
		return nil, err
	}
	sending, cancel := context.WithCancel(ctx)
	sent := make(chan error, 2)
	byAddress, err := r.pg.AppDialerOf(caller)
	if err != nil {
		cancel()
		return nil, err
	}
	for _, body := range []string{"", r.secret} {
		l := traffic.Load{
			URL: target + r.secret, Proxy: proxy, Dial: r.pg.DialerOf(caller), Body: body, Workers: callers, Rate: r.Rate, Timeout: 30 * time.Second, Trace: true,
		}
		if body == "" && byAddress != nil {
			l.Proxy, l.Dial = "", byAddress // where it can be, one of the two knows of no proxy
		}
		go func() { sent <- l.Run(sending, r.tally.Add, r.note) }()
	}
	return func() error {
		cancel()
		return errors.Join(<-sent, <-sent)
	}, nil
}

// note writes down what the client saw.
func (r *run) note(a traffic.Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clients = append(r.clients, a.Entry())
}

// rounds breaks one victim at a time, by one fault or two, and heals it before the next.
func (r *run) rounds(ctx context.Context) error {
	if r.Only != nil {
		if err := sleep(ctx, 2*time.Second); err != nil {
			return err
		}
		if err := r.round(ctx, *r.Only); err != nil {
			return err
		}
		return sleep(ctx, 2*time.Second)
	}
	for i := 0; r.report.Faults < r.Faults; i++ {
		if err := r.round(ctx, i); err != nil {
			return fmt.Errorf("round %d: %w\nto have it again: %s", i, err, r.repeat(i))
		}
	}
	return nil
}

// repeat is the command that has a round alone.
func (r *run) repeat(i int) string {
	return fmt.Sprintf("isthmus playground chaos --runtime %s --seed %d --only %d", r.Lab.Runtime, r.Seed, i)
}

func (r *run) round(ctx context.Context, i int) error {
	at, faults := r.schedule.draw(i)
	order := []string{at.victim, at.other}
	switch at.luck.IntN(5) {
	case 0:
		order = []string{at.other, at.victim}
	case 1:
		order = []string{evenly}
	}
	if err := prefer(r.pg, order); err != nil {
		return err
	}
	if err := sleep(ctx, 200*time.Millisecond); err != nil {
		return err
	}
	before := r.tally.Counts()
	now := Round{Index: i, Victim: at.victim, Began: time.Now()}
	var names []string
	for _, f := range faults {
		names = append(names, f.what)
		now.Faults = append(now.Faults, Fault{f.kind, f.what})
		r.report.ByKind[f.kind]++
	}
	words := strings.Join(names, " and ")
	err := r.inflict(ctx, at, faults)
	if e := r.heal(ctx, faults); err == nil && e != nil {
		err = fmt.Errorf("heal: %w", e)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", words, err)
	}
	now.Healed = time.Now()
	if err := r.goesOn(ctx, before.Total); err != nil {
		return fmt.Errorf("%s: %w", words, err)
	}
	c := r.tally.Counts()
	now.Requests, now.Failed = c.Total-before.Total, c.Failed-before.Failed
	r.report.Rounds = append(r.report.Rounds, now)
	r.report.Faults += len(faults)
	r.say("%4d faults; round %d, calls go to %s: %s; %.1f s; %d requests, %d failed", r.report.Faults, i, strings.Join(order, ", "), words,
		now.Healed.Sub(now.Began).Seconds(), now.Requests, now.Failed)
	return nil
}

// goesOn waits until requests are answered: a round without any proves nothing.
func (r *run) goesOn(ctx context.Context, before int) error {
	for range 100 {
		if r.tally.Counts().Total > before {
			return nil
		}
		if err := sleep(ctx, settle/100); err != nil {
			return err
		}
	}
	return fmt.Errorf("not one request was answered within %s of when all was well again", settle)
}

// inflict has all faults at once, for as long as they last.
func (r *run) inflict(ctx context.Context, at scene, faults []fault) error {
	if r.Lab.Runtime == lab.Netns {
		links, err := worsened(r.Lab.Links, faults)
		if err != nil {
			return err
		}
		if _, err := r.pg.SetDirections(ctx, links); err != nil {
			return err
		}
	}
	lasting, end := context.WithTimeout(ctx, at.lasts)
	defer end()
	var g errgroup.Group
	for i, f := range faults {
		g.Go(func() error {
			if f.kills != "" {
				r.noteKill(f.kills)
			}
			if f.inject != nil {
				if err := f.inject(ctx, r.hands[i]); err != nil {
					return err
				}
			}
			if f.during != nil {
				if err := f.during(lasting, r.hands[i]); err != nil && lasting.Err() == nil { // what is cut short is no error
					return err
				}
			}
			return nil
		})
	}
	err := sleep(ctx, at.lasts)
	return errors.Join(g.Wait(), err)
}

func (r *run) noteKill(cluster string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.killed = append(r.killed, kill{cluster, time.Now()})
}

// heal puts everything right and waits until calls go everywhere again.
func (r *run) heal(ctx context.Context, faults []fault) error {
	for _, f := range faults {
		if f.undo == nil {
			continue
		}
		if err := f.undo(ctx, r.pg); err != nil {
			return err
		}
	}
	if r.Lab.Runtime == lab.Netns {
		if _, err := r.pg.SetDirections(ctx, r.Lab.Links); err != nil {
			return err
		}
	}
	if _, err := r.pg.Heal(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for _, f := range faults {
		if f.restore == nil {
			continue
		}
		if err := f.restore(ctx, r.pg); err != nil {
			return err
		}
	}
	return r.pg.Settle(ctx)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
