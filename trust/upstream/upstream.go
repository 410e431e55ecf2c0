// Package upstream takes a program's identity from somebody else's SPIFFE Workload API, SPIRE's for example: its X.509-SVID, which goes into a
// trust.Identity and is replaced there whenever the other side has a new one, and the bundle of its trust domain.
//
// isthmus-control, isthmus-gateway and isthmus-sidecar use it where their configuration names such a socket; control then issues nothing.
//
// Concurrency: a Source is safe for concurrent use. Run follows the other side until its context ends, and waits for all that it started.
//
// Standards: "SPIFFE Workload Endpoint" and "SPIFFE Workload API" (github.com/spiffe/spiffe/standards).
package upstream

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/isthmus-mesh/isthmus/trust"
)

// Config is what a Source is made from. Address, TrustDomain and Identity are required.
type Config struct {
	Address     string // unix:///run/spire/agent.sock
	TrustDomain spiffeid.TrustDomain
	// ID is who the program has to be; zero: any member of the trust domain, the first that it is given.
	ID       spiffeid.ID
	Identity *trust.Identity // is set
	Log      *slog.Logger    // default: none
}

// Source is a program's identity, as a Workload API has it.
type Source struct {
	cfg    Config
	client *workloadapi.Client

	mu      sync.Mutex
	roots   []*x509.Certificate         // guarded by mu; replaced, never changed
	jwtKeys map[string]crypto.PublicKey // guarded by mu; likewise
	problem error                       // guarded by mu; of the last answer, or that there was none
	changed chan struct{}               // guarded by mu
}

// CheckAddress checks the address of a Workload API.
func CheckAddress(address string) error {
	if err := workloadapi.ValidateAddress(address); err != nil {
		return fmt.Errorf("%q: %w: want unix:///path/to/socket", address, err)
	}
	return nil
}

// New returns a Source that knows nothing yet. Close it.
func New(cfg Config) (*Source, error) {
	if cfg.TrustDomain.IsZero() || cfg.Identity == nil {
		return nil, errors.New("upstream: a trust domain and an identity are required")
	}
	if err := CheckAddress(cfg.Address); err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// It connects when it is first asked.
	client, err := workloadapi.New(context.Background(), workloadapi.WithAddr(cfg.Address))
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	return &Source{cfg: cfg, client: client, problem: fmt.Errorf("upstream: %s has not answered yet", cfg.Address)}, nil
}

// Close ends the connection.
func (s *Source) Close() error { return s.client.Close() }

// Fetch asks once, and puts what it hears in force. What is refused, or is of somebody else, is an error.
func (s *Source) Fetch(ctx context.Context) error {
	x, err := s.client.FetchX509Context(ctx)
	if err != nil {
		return fmt.Errorf("upstream: %s: %w", s.cfg.Address, err)
	}
	if err = s.take(x); err != nil {
		return err
	}
	if keys, err := s.client.FetchJWTBundles(ctx); err == nil { // not everybody has some
		s.takeJWT(keys)
	}
	return nil
}

// Run follows the other side until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	var children sync.WaitGroup
	defer children.Wait()
	children.Go(func() { _ = s.client.WatchJWTBundles(ctx, jwtWatcher{s}) }) // ends with ctx
	err := s.client.WatchX509Context(ctx, x509Watcher{s})
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("upstream: %s: %w", s.cfg.Address, err)
}

// Roots are the X.509 roots of the trust domain; none before the first answer.
func (s *Source) Roots() []*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roots
}

// JWTKeys are the keys by which JWT-SVIDs of the trust domain are verified.
func (s *Source) JWTKeys() map[string]crypto.PublicKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.jwtKeys)
}

// Problem is why what is in force is not what the other side says now; nil: it is.
func (s *Source) Problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem
}

// Changed returns a channel that is closed when any of these has changed.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// SignJWT asks for a JWT-SVID of the program's own ID.
func (s *Source) SignJWT(ctx context.Context, audience []string) (string, error) {
	if err := trust.CheckAudience(audience); err != nil {
		return "", fmt.Errorf("upstream: %w", err)
	}
	svid, err := s.cfg.Identity.SVID()
	if err != nil {
		return "", err
	}
	token, err := s.client.FetchJWTSVID(ctx, jwtsvid.Params{Subject: svid.ID, Audience: audience[0], ExtraAudiences: audience[1:]})
	if err != nil {
		return "", fmt.Errorf("upstream: %w", err)
	}
	return token.Marshal(), nil
}

// take puts an answer in force, or leaves what was there before.
func (s *Source) take(x *workloadapi.X509Context) error {
	err := s.try(x)
	s.mu.Lock()
	before := s.problem
	s.problem = err
	s.tellLocked()
	s.mu.Unlock()
	switch {
	case err == nil && before != nil:
		s.cfg.Log.Info("identity taken from a Workload API", "address", s.cfg.Address)
	case err != nil && (before == nil || before.Error() != err.Error()):
		s.cfg.Log.Error("what a Workload API says can't be used; what it said last stays in use", "address", s.cfg.Address, "error", err)
	}
	return err
}

func (s *Source) try(x *workloadapi.X509Context) error {
	bundle, err := x.Bundles.GetX509BundleForTrustDomain(s.cfg.TrustDomain)
	if err != nil {
		return fmt.Errorf("upstream: %s has no bundle of %s: %w", s.cfg.Address, s.cfg.TrustDomain, err)
	}
	roots := bundle.X509Authorities()
	if _, err = trust.MarshalBundle(s.cfg.TrustDomain, trust.Bundle{Authorities: roots}, 0, 0); err != nil { // what peers would refuse
		return fmt.Errorf("upstream: bundle of %s: %w", s.cfg.TrustDomain, err)
	}
	for _, svid := range x.SVIDs {
		if svid.ID == s.cfg.ID || s.cfg.ID.IsZero() && svid.ID.MemberOf(s.cfg.TrustDomain) {
			s.cfg.Identity.Set(svid)
			s.mu.Lock()
			s.roots = slices.Clone(roots)
			s.mu.Unlock()
			return nil
		}
	}
	want := "a member of " + s.cfg.TrustDomain.Name()
	if !s.cfg.ID.IsZero() {
		want = s.cfg.ID.String()
	}
	ids := make([]string, 0, len(x.SVIDs))
	for _, svid := range x.SVIDs {
		ids = append(ids, svid.ID.String())
	}
	return fmt.Errorf("upstream: %s says that this program is %q: it must be %s; register it as that", s.cfg.Address, ids, want)
}

func (s *Source) takeJWT(set *jwtbundle.Set) {
	bundle, err := set.GetJWTBundleForTrustDomain(s.cfg.TrustDomain)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jwtKeys = bundle.JWTAuthorities()
	s.tellLocked()
}

func (s *Source) tellLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// x509Watcher and jwtWatcher are what go-spiffe tells.
type x509Watcher struct{ s *Source }

func (w x509Watcher) OnX509ContextUpdate(x *workloadapi.X509Context) { _ = w.s.take(x) } // logged there

func (w x509Watcher) OnX509ContextWatchError(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	w.s.mu.Lock()
	first := w.s.problem == nil
	w.s.problem = fmt.Errorf("upstream: %s: %w", w.s.cfg.Address, err)
	w.s.tellLocked()
	w.s.mu.Unlock()
	if first {
		w.s.cfg.Log.Warn("a Workload API is away; what it said last stays in use", "address", w.s.cfg.Address, "error", err)
	}
}

type jwtWatcher struct{ s *Source }

func (w jwtWatcher) OnJWTBundlesUpdate(set *jwtbundle.Set) { w.s.takeJWT(set) }
func (w jwtWatcher) OnJWTBundlesWatchError(error)          {} // not everybody has some
