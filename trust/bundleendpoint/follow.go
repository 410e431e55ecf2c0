package bundleendpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
)

// How often endpoints are asked, whatever they hint at.
const (
	defaultRefresh  = 5 * time.Minute
	shortestRefresh = 30 * time.Second
	longestRefresh  = time.Hour
	refreshJitter   = 0.1 // of it, sooner: a hint is a bound
	firstRetry      = 5 * time.Second
	longestRetry    = 5 * time.Minute
	staleAfter      = 3 // times without an answer, in refreshes
)

// MaxDomains is how many domains are followed.
const MaxDomains = 64

// Domain is a trust domain to be followed.
type Domain struct {
	Name     spiffeid.TrustDomain
	Endpoint Endpoint
	// Initial is a document that the operator vouches for: what an HTTPSSPIFFE server of the domain itself is known by at first. Another one
	// than before, with keys that are new, counts also when its sequence is lower: so a domain that began anew is let in again.
	Initial []byte
}

// Freshness is how current a followed bundle is. The words are stable.
type Freshness string

// The states of a followed domain.
const (
	Fresh  Freshness = "Fresh"  // the endpoint's last word, not long ago
	Stale  Freshness = "Stale"  // the endpoint has not answered for three refreshes, or not yet; what it said last stays in force
	Failed Freshness = "Failed" // nothing is known of the domain, or the endpoint says what is refused
)

// State is what is known of a followed domain.
type State struct {
	Domain    spiffeid.TrustDomain
	Endpoint  Endpoint
	Bundle    trust.Bundle // without authorities while nothing is known
	Sequence  uint64
	Document  []byte // as received
	Freshness Freshness
	Reason    string    // why it is not Fresh, or why the last attempt failed; empty: nothing is wrong
	Fetched   time.Time // when the endpoint answered last with what was taken; zero: not since the start
	Next      time.Time // when it is asked again
}

// Kept is what must not be forgotten of a domain.
type Kept struct {
	Mark     Mark
	Document []byte // that was in force last; may be lost
}

// Mark is how far a domain has come. What is older is refused.
type Mark struct {
	Sequenced bool   `json:"sequenced"` // the document had a sequence
	Sequence  uint64 `json:"sequence"`
	Sum       string `json:"sum"`               // of its keys
	Initial   string `json:"initial,omitempty"` // sum of the keys of the Initial that was taken into account
}

// Store keeps what must outlive the process.
type Store interface {
	Load(td spiffeid.TrustDomain) (Kept, error) // the zero Kept when there is none
	// Save is durable when it returns. A crash in its midst may leave the new document with the old mark.
	Save(td spiffeid.TrustDomain, k Kept) error
}

// FollowerConfig is what a Follower is made from.
type FollowerConfig struct {
	Store Store // required
	// Others returns the bundle of a domain that is not followed, to verify an HTTPSSPIFFE server of such a domain; nil: none is known.
	Others func(td spiffeid.TrustDomain) (trust.Bundle, bool)
	// Fetch asks an endpoint. Default: Fetch.
	Fetch func(ctx context.Context, e Endpoint, bundles *trust.Bundles) ([]byte, error)
	Now   func() time.Time // default: time.Now
	Log   *slog.Logger     // default: none
}

// Follower keeps up with the bundles of other trust domains.
type Follower struct {
	cfg FollowerConfig

	mu      sync.Mutex
	wanted  []Domain                           // guarded by mu; by name
	states  map[spiffeid.TrustDomain]*followed // guarded by mu
	changed chan struct{}                      // guarded by mu; closed at the next change of a State
	wake    chan struct{}                      // holds one: wanted has changed
}

// followed is a domain that is followed.
type followed struct {
	domain Domain
	broken bool // what is known of it can't be relied on: it is not asked
	mark   Mark
	state  State
}

// NewFollower returns a Follower of nobody.
func NewFollower(cfg FollowerConfig) (*Follower, error) {
	if cfg.Store == nil {
		return nil, errors.New("bundleendpoint: a Store is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Fetch == nil {
		cfg.Fetch = func(ctx context.Context, e Endpoint, bundles *trust.Bundles) ([]byte, error) {
			return Fetch(ctx, e, bundles, cfg.Now)
		}
	}
	return &Follower{cfg: cfg, states: make(map[spiffeid.TrustDomain]*followed), wake: make(chan struct{}, 1)}, nil
}

// Set says who is to be followed: each domain once, MaxDomains at most; what is beyond is left out. A domain that is no longer in it is
// forgotten at once, but for how far it had come. What is known of a new one from before, or from its Initial, is in States when Set returns.
func (f *Follower) Set(domains []Domain) {
	domains = slices.Clone(domains)
	slices.SortFunc(domains, func(a, b Domain) int { return a.Name.Compare(b.Name) })
	domains = domains[:min(len(domains), MaxDomains)]
	f.mu.Lock()
	defer f.mu.Unlock()
	if reflect.DeepEqual(f.wanted, domains) {
		return
	}
	f.wanted = domains
	next := make(map[spiffeid.TrustDomain]*followed, len(domains))
	for _, d := range domains {
		old := f.states[d.Name]
		if old != nil && reflect.DeepEqual(old.domain, d) {
			next[d.Name] = old
			continue
		}
		next[d.Name] = f.recall(d)
	}
	f.states = next
	f.announce()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// announce tells of a change. The caller holds mu.
func (f *Follower) announce() {
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// Changed returns a channel that the next change of States closes. To miss nothing: take the channel first.
func (f *Follower) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

// States returns what is known of each followed domain, by name. What they hold is not to be modified.
func (f *Follower) States() []State {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]State, 0, len(f.states))
	for _, s := range f.states {
		out = append(out, s.state)
	}
	slices.SortFunc(out, func(a, b State) int { return a.Domain.Compare(b.Domain) })
	return out
}

// recall brings back what was known of a domain. The caller holds mu.
func (f *Follower) recall(d Domain) *followed {
	s := &followed{domain: d, state: State{
		Domain: d.Name, Endpoint: d.Endpoint, Freshness: Failed, Reason: "the endpoint has not been asked yet", Next: f.cfg.Now(),
	}}
	if err := f.recover(s); err != nil {
		s.broken = true
		s.state = State{Domain: d.Name, Endpoint: d.Endpoint, Freshness: Failed, Reason: err.Error()}
		f.cfg.Log.Error("federated trust domain can't be followed", "trust_domain", d.Name.Name(), "error", err)
	}
	return s
}

// recover fills in what is on disk, and then what the operator vouches for.
func (f *Follower) recover(s *followed) error {
	d := &s.domain
	kept, err := f.cfg.Store.Load(d.Name)
	if err != nil {
		return err // without the mark, anything could be told again
	}
	s.mark = kept.Mark
	if len(kept.Document) > 0 {
		last, bad := parseDocument(d.Name, kept.Document)
		switch {
		case bad != nil:
			f.cfg.Log.Error("what a federated trust domain said last can't be read; it is asked again", "trust_domain", d.Name.Name(), "error", bad)
		case s.mark.admits(last) == nil:
			s.take(last)
			s.state.Freshness, s.state.Reason = Stale, "the endpoint has not been asked since the start"
		}
	}
	if len(d.Initial) == 0 {
		return nil
	}
	doc, err := parseDocument(d.Name, d.Initial)
	if err != nil {
		return fmt.Errorf("initial bundle: %w", err)
	}
	switch accounted := s.mark.Initial == doc.sum; {
	case accounted && (len(s.state.Bundle.Authorities) > 0 || s.mark.admits(doc) != nil):
		return nil
	case !accounted && s.mark.admits(doc) != nil:
		f.cfg.Log.Warn("a federated trust domain begins anew, with the bundle that its manifest has now",
			"trust_domain", d.Name.Name(), "sequence", doc.sequence, "before", s.mark.Sequence)
	}
	s.mark.Initial = doc.sum
	s.take(doc)
	s.state.Freshness, s.state.Reason = Stale, "the endpoint has not been asked yet; the bundle is the initial one"
	return f.cfg.Store.Save(d.Name, Kept{Mark: s.mark, Document: doc.raw})
}

// take puts a document in force.
func (s *followed) take(doc *document) {
	s.mark = Mark{Sequenced: doc.sequenced, Sequence: doc.sequence, Sum: doc.sum, Initial: s.mark.Initial}
	s.state.Bundle, s.state.Sequence, s.state.Document = doc.bundle, doc.sequence, doc.raw
}

// ErrWentBack says that a document is older than what was taken before, or says something else under the same number.
var ErrWentBack = errors.New("the bundle went back")

// admits refuses a document that is older than the mark.
func (m Mark) admits(doc *document) error {
	switch {
	case m.Sum == "" || doc.sum == m.Sum && doc.sequence == m.Sequence:
		return nil
	case m.Sequenced && !doc.sequenced:
		return fmt.Errorf("%w: it has no sequence, after %d", ErrWentBack, m.Sequence)
	case doc.sequence < m.Sequence:
		return fmt.Errorf("%w: sequence %d, after %d", ErrWentBack, doc.sequence, m.Sequence)
	case m.Sequenced && doc.sequence == m.Sequence:
		return fmt.Errorf("%w: other keys under the same sequence %d", ErrWentBack, m.Sequence)
	}
	return nil // a domain that numbers nothing can't be held to an order
}

// Run asks the endpoints until ctx ends. It may be called once.
func (f *Follower) Run(ctx context.Context) error {
	type child struct {
		stop   func()
		domain *followed
	}
	children := make(map[spiffeid.TrustDomain]child)
	var group sync.WaitGroup
	defer group.Wait()
	defer func() {
		for _, c := range children {
			c.stop()
		}
	}()
	for {
		f.mu.Lock()
		for td, c := range children {
			if f.states[td] != c.domain {
				c.stop()
				delete(children, td)
			}
		}
		for td, s := range f.states {
			if _, runs := children[td]; !runs && !s.broken {
				c, stop := context.WithCancel(ctx)
				children[td] = child{stop, s}
				group.Go(func() { f.follow(c, s) })
			}
		}
		f.mu.Unlock()
		select {
		case <-f.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// follow asks one endpoint, until ctx ends.
func (f *Follower) follow(ctx context.Context, s *followed) {
	failures := 0
	refresh := time.Duration(0) // of the document in force
	for {
		doc, err := f.ask(ctx, s)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures, refresh = 0, bounded(doc.hint)
		} else {
			failures++
		}
		wait := time.Duration(float64(bounded(refresh)) * (1 - refreshJitter*rand.Float64())) //nolint:gosec // G404: a jitter, not a secret
		if err != nil {
			wait = min(wait, longestRetry, firstRetry<<min(failures-1, 10))
		}
		f.settle(s, doc, err, bounded(refresh), wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// bounded keeps a refresh hint within what is reasonable; 0: there is none.
func bounded(hint time.Duration) time.Duration {
	if hint == 0 {
		return defaultRefresh
	}
	return min(max(hint, shortestRefresh), longestRefresh)
}

// ask gets a document and takes it, if it may be.
func (f *Follower) ask(ctx context.Context, s *followed) (*document, error) {
	raw, err := f.cfg.Fetch(ctx, s.domain.Endpoint, f.verifiers(s))
	if err != nil {
		return nil, &unreachableError{err}
	}
	doc, err := parseDocument(s.domain.Name, raw)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.states[s.domain.Name] != s || ctx.Err() != nil {
		return nil, context.Canceled // it is followed no longer, or otherwise
	}
	if err := s.mark.admits(doc); err != nil {
		return nil, err
	}
	if doc.sum == s.mark.Sum && doc.sequence == s.mark.Sequence && len(s.state.Bundle.Authorities) > 0 {
		return doc, nil
	}
	next := *s
	next.take(doc)
	// On disk before it counts: otherwise a crash would let what was before be told again.
	if err := f.cfg.Store.Save(s.domain.Name, Kept{Mark: next.mark, Document: doc.raw}); err != nil {
		return nil, fmt.Errorf("it can't be kept: %w", err)
	}
	s.mark, s.state = next.mark, next.state
	f.cfg.Log.InfoContext(ctx, "bundle of a federated trust domain taken",
		"trust_domain", s.domain.Name.Name(), "sequence", doc.sequence, "authorities", len(doc.bundle.Authorities), "jwt_keys", len(doc.bundle.JWTAuthorities))
	return doc, nil
}

// unreachableError is a failure that says nothing of what the endpoint has to say.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// verifiers returns what an HTTPSSPIFFE server is verified with: the bundle of its own domain, as it is known now.
func (f *Follower) verifiers(s *followed) *trust.Bundles {
	out := trust.NewBundles()
	td := s.domain.Endpoint.ID.TrustDomain()
	if td.IsZero() {
		return out
	}
	f.mu.Lock()
	of := f.states[td]
	var b trust.Bundle
	if of != nil {
		b = of.state.Bundle
	}
	f.mu.Unlock()
	known := of != nil
	if !known && f.cfg.Others != nil {
		b, known = f.cfg.Others(td)
	}
	if known && len(b.Authorities) > 0 {
		out.Set(td, b)
	}
	return out
}

// settle notes how an attempt ended.
func (f *Follower) settle(s *followed, doc *document, err error, refresh, wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.states[s.domain.Name] != s {
		return
	}
	now := f.cfg.Now()
	before := s.state
	s.state.Next = now.Add(wait)
	unreachable, away := errors.AsType[*unreachableError](err)
	switch {
	case err == nil:
		s.state.Freshness, s.state.Reason, s.state.Fetched, s.state.Document = Fresh, "", now, doc.raw
	case len(s.state.Bundle.Authorities) == 0:
		s.state.Freshness, s.state.Reason = Failed, err.Error()
	case !away:
		s.state.Freshness, s.state.Reason = Failed, "the bundle that it serves is refused, the last good one stays: "+err.Error()
	case s.state.Fetched.IsZero() || now.Sub(s.state.Fetched) > staleAfter*refresh:
		s.state.Freshness, s.state.Reason = Stale, unreachable.Error()
	default:
		s.state.Reason = unreachable.Error() // it may be back at the next attempt
	}
	if before.Freshness != s.state.Freshness || before.Reason != s.state.Reason {
		level := slog.LevelInfo
		if s.state.Reason != "" {
			level = slog.LevelWarn
		}
		f.cfg.Log.Log(context.Background(), level, "federated trust domain", "trust_domain", s.domain.Name.Name(),
			"state", string(s.state.Freshness), "reason", s.state.Reason, "next", s.state.Next)
	}
	f.announce()
}
