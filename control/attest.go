package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
)

// Attestor knows programs by what their platform says of them, where nobody hands out join tokens: in Kubernetes, by a service account
// token that is bound to a pod. Implementations are safe for concurrent use.
type Attestor interface {
	// Attest returns which program it is that shows the token: its kind, as in the keys of the config stream, and its name.
	// ErrNotAttested refuses it; any other error is that it can't be told now.
	Attest(ctx context.Context, token string) (program, name string, err error)
}

// ErrNotAttested says that a token proves nothing here: it is no good, or of somebody who is no program of the mesh.
var ErrNotAttested = errors.New("not attested")

// Limits of attesting. Who asks is nobody yet, and each question costs the platform one.
const (
	maxPlatformToken   = 8 << 10 // bytes; a bound service account token has some 1,200
	attestationsAtOnce = 100     // as a node that restarts may bring
	attestationsPerSec = 50
	// newcomerPatience is how long a Join waits for the registry to hear of a workload that the platform itself has told of: what is asked
	// directly is ahead of what is watched, by milliseconds as a rule.
	newcomerPatience = 2 * time.Second
)

func newAttestationLimit() *rate.Limiter {
	return rate.NewLimiter(attestationsPerSec, attestationsAtOnce)
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
	switch {
	case token == "" || len(token) > maxPlatformToken:
		return g, undo, status.Error(codes.Unauthenticated, fmt.Sprintf("a token of %d bytes: want 1 to %d", len(token), maxPlatformToken))
	case !s.attestations.Allow():
		return g, undo, status.Error(codes.ResourceExhausted, "too many programs join at once: try again")
	}
	g.attested = true
	g.program, g.name, err = s.attestor.Attest(ctx, token)
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

// identify returns the SPIFFE ID of who has proved to be somebody. A workload that the platform vouches for is waited for.
func (s *identityServer) identify(ctx context.Context, g grant) (spiffeid.ID, error) {
	limit := time.NewTimer(newcomerPatience)
	defer limit.Stop()
	for {
		changed := s.directory.registry.Objects().Changed()
		id, err := s.directory.identity(g.program, g.name)
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
