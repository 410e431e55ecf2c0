package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
)

// Attestor knows programs by what their platform says of them, where nobody hands out join tokens: in Kubernetes, by a service account
// token that is bound to a pod. Implementations are safe for concurrent use.
type Attestor interface {
	// Attest asks the platform whose token it is, and returns who that is. ErrNotAttested refuses it; any other error is that it can't be
	// told now.
	Attest(ctx context.Context, token string) (Attested, error)
	// Screen refuses, with ErrNotAttested, what can't be a good token by all that it says itself. It is cheap, asks nobody, and proves nothing.
	Screen(token string) error
}

// Attested is a program that the platform vouches for.
type Attested struct {
	Program string // its kind, as in the keys of the config stream
	Name    string
	// ServiceAccount is what a workload runs as now. The registry may still know one that had the name before.
	ServiceAccount string
}

// ErrNotAttested says that a token proves nothing here: it is no good, or of somebody who is no program of the mesh.
var ErrNotAttested = errors.New("not attested")

// Limits of attesting. Who asks is nobody yet, and each question costs the platform one.
const (
	maxPlatformToken   = 8 << 10 // bytes; a bound service account token has some 1,200
	attestationsAtOnce = 100     // as a node that restarts may bring
	attestationsPerSec = 50
	// Of them, from one IPv4 address or IPv6 /64. A pod has its own as a rule and joins once; where a network hides all pods of a node behind
	// one, those of a full node (110) are in after 14 s. It takes ten addresses that do nothing else to use up all there is.
	attestationsAtOnceOfAddress = 40
	attestationsPerSecOfAddress = 5
	maxAttestationAddresses     = 4096 // that are remembered: for 8 s after their last, or until there are more

	screenedLogsPerSec = 1 // of tokens that are refused without a question; who sent one hears why each time
	screenedLogsAtOnce = 20

	// newcomerPatience is how long a Join waits for the registry to hear of a workload that the platform itself has told of: what is asked
	// directly is ahead of what is watched, by milliseconds as a rule.
	newcomerPatience = 2 * time.Second
)

// attestations bound how much the platform is asked: in all, and by address, so that nobody uses up what others need. Safe for
// concurrent use.
type attestations struct {
	total    *rate.Limiter
	screened *rate.Limiter // log lines of what is refused before

	mu        sync.Mutex
	ofAddress map[netip.Prefix]*rate.Limiter // guarded by mu
}

func newAttestations() *attestations {
	return &attestations{
		total:     rate.NewLimiter(attestationsPerSec, attestationsAtOnce),
		screened:  rate.NewLimiter(screenedLogsPerSec, screenedLogsAtOnce),
		ofAddress: make(map[netip.Prefix]*rate.Limiter),
	}
}

// allow reports whether who is at that address may ask now.
func (a *attestations) allow(from netip.Prefix, now time.Time) bool {
	return a.limitOf(from, now).AllowN(now, 1) && a.total.AllowN(now, 1) // in this order: what one address has too much costs nobody else
}

func (a *attestations) limitOf(from netip.Prefix, now time.Time) *rate.Limiter {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.ofAddress[from]
	if l == nil {
		if len(a.ofAddress) >= maxAttestationAddresses {
			a.forget(now)
		}
		l = rate.NewLimiter(attestationsPerSecOfAddress, attestationsAtOnceOfAddress)
		a.ofAddress[from] = l
	}
	return l
}

// forget makes room: for those who may ask as much as if they never had; if they are few, also for others, no matter which. The caller
// holds a.mu.
func (a *attestations) forget(now time.Time) {
	maps.DeleteFunc(a.ofAddress, func(_ netip.Prefix, l *rate.Limiter) bool { return l.TokensAt(now) >= attestationsAtOnceOfAddress })
	for from := range a.ofAddress {
		if len(a.ofAddress) <= maxAttestationAddresses*3/4 {
			return // with room for many, so that this is seldom
		}
		delete(a.ofAddress, from)
	}
}

// callerAddress returns where a call comes from.
func callerAddress(ctx context.Context) netip.Prefix {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Prefix{}
	}
	return prefixOf(p.Addr)
}

// prove returns what a token is good for. undo takes that back, when nothing was issued for it. Errors are of gRPC.
func (s *identityServer) prove(ctx context.Context, token string) (g grant, undo func(), err error) {
	if s.attestor == nil || strings.HasPrefix(token, identityv1.JoinTokenPrefix) {
		if g, undo, err = s.tokens.redeem(token); err != nil {
			s.log.WarnContext(ctx, "join refused", "error", err)
			return g, undo, status.Error(codes.Unauthenticated, err.Error())
		}
		return g, undo, nil
	}
	undo = func() {}
	if token == "" || len(token) > maxPlatformToken {
		return g, undo, status.Error(codes.Unauthenticated, fmt.Sprintf("a token of %d bytes: want 1 to %d", len(token), maxPlatformToken))
	}
	from := callerAddress(ctx)
	if err = s.attestor.Screen(token); err != nil {
		if s.attestations.screened.Allow() {
			s.log.WarnContext(ctx, "join refused", "from", from, "error", err)
		}
		return g, undo, status.Error(codes.Unauthenticated, err.Error())
	}
	if !s.attestations.allow(from, time.Now()) {
		return g, undo, status.Error(codes.ResourceExhausted, "too many programs join at once: try again")
	}
	who, err := s.attestor.Attest(ctx, token)
	g = grant{program: who.Program, name: who.Name, account: who.ServiceAccount, attested: true}
	switch {
	case errors.Is(err, ErrNotAttested):
		s.log.WarnContext(ctx, "join refused", "error", err)
		return g, undo, status.Error(codes.Unauthenticated, err.Error())
	case err != nil:
		s.log.WarnContext(ctx, "can't attest now", "error", err)
		return g, undo, status.Error(codes.Unavailable, "can't tell now who shows this token: try again")
	}
	return g, undo, nil
}

// identify returns the SPIFFE ID of who has proved to be somebody. A workload that the platform vouches for is waited for, also while the
// registry knows another one by its name: nobody gets the identity of a predecessor.
func (s *identityServer) identify(ctx context.Context, g grant) (spiffeid.ID, error) {
	limit := time.NewTimer(newcomerPatience)
	defer limit.Stop()
	for {
		changed := s.directory.registry.Objects().Changed()
		id, err := s.directory.granted(g)
		if !g.attested || !errors.Is(err, errNoWorkload) {
			return id, err
		}
		select {
		case <-changed:
			continue
		case <-limit.C:
		case <-ctx.Done():
		}
		return id, fmt.Errorf("%w, though the platform knows it: has it an address, and is it well (isthmus status)?: %w", err, configstream.ErrUndecided)
	}
}
