package workload

import (
	"context"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
)

// Own is the Source of a program that stands beside one workload: whoever is the workload has its identity, which is the program's own.
type Own struct {
	Identity *trust.Identity
	UIDs     []uint32 // who is the workload
	AnyUID   bool     // whoever reaches the socket is
	// Sign makes a JWT-SVID of the identity.
	Sign func(ctx context.Context, audience []string) (token string, err error)
}

// Identities returns the program's identity, for the workload.
func (o *Own) Identities(c Caller) ([]Identity, <-chan struct{}, error) {
	if !o.AnyUID && (!c.Known() || !slices.Contains(o.UIDs, c.UID)) {
		return nil, nil, fmt.Errorf("%w: uid %d is not of the workload", ErrNobody, c.UID)
	}
	changed := o.Identity.Changed()
	svid, err := o.Identity.SVID()
	if err != nil {
		return nil, changed, fmt.Errorf("%w: %w", ErrNotYet, err)
	}
	return []Identity{{SVID: svid}}, changed, nil
}

// SignJWT makes a JWT-SVID.
func (o *Own) SignJWT(ctx context.Context, _ spiffeid.ID, audience []string) (string, error) {
	if o.Sign == nil {
		return "", fmt.Errorf("workload: JWT-SVIDs are not made here")
	}
	return o.Sign(ctx, audience)
}
