package trust

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Policy says whether a verified peer may speak: nil lets it in, an error says why not. It is called in handshakes and,
// by [Guard], again and again while a connection is open: it must be quick, must not block, and is called concurrently.
// A nil Policy lets nobody in.
type Policy func(Peer) error

var errNoPolicy = errors.New("no policy lets anybody in")

// check applies p to a verified peer. Errors are of type *VerifyError.
func (p Policy) check(peer Peer) error {
	if p == nil {
		return &VerifyError{Reason: NotAllowed, ID: peer.ID, Err: errNoPolicy}
	}
	if err := p(peer); err != nil {
		return &VerifyError{Reason: NotAllowed, ID: peer.ID, Err: err}
	}
	return nil
}

// AllowAny lets in every member of every trust domain in the bundles.
func AllowAny() Policy { return func(Peer) error { return nil } }

// AllowIDs lets in exactly these; nobody when there are none.
func AllowIDs(ids ...spiffeid.ID) Policy {
	ids = slices.Clone(ids)
	return func(p Peer) error {
		switch {
		case slices.Contains(ids, p.ID):
			return nil
		case len(ids) == 1:
			return fmt.Errorf("want %s", ids[0])
		default:
			return fmt.Errorf("want one of %v", ids)
		}
	}
}

// AllowDomain lets in every member of one trust domain.
func AllowDomain(td spiffeid.TrustDomain) Policy {
	return func(p Peer) error {
		if !p.ID.MemberOf(td) {
			return fmt.Errorf("want a member of %s", td)
		}
		return nil
	}
}

// AllowControl lets in the control plane of td.
func AllowControl(td spiffeid.TrustDomain) Policy {
	return func(p Peer) error {
		if !p.ID.MemberOf(td) || !IsControl(p.ID) {
			return fmt.Errorf("want the control plane of %s", td)
		}
		return nil
	}
}

// AllowGateways lets in the gateways of these trust domains; nobody when there are none.
func AllowGateways(tds ...spiffeid.TrustDomain) Policy {
	tds = slices.Clone(tds)
	return func(p Peer) error {
		if _, ok := ParseGateway(p.ID); !ok || !slices.Contains(tds, p.ID.TrustDomain()) {
			return fmt.Errorf("want a gateway of %v", tds)
		}
		return nil
	}
}

// AllowAnyGateway lets in the gateways of every trust domain in the bundles.
func AllowAnyGateway() Policy {
	return func(p Peer) error {
		if _, ok := ParseGateway(p.ID); !ok {
			return errors.New("want a gateway")
		}
		return nil
	}
}

// AllowAnyOf lets in whom one of the policies lets in.
func AllowAnyOf(policies ...Policy) Policy {
	policies = slices.Clone(policies)
	return func(p Peer) error {
		errs := make([]error, 0, len(policies))
		for _, policy := range policies {
			if policy == nil {
				continue
			}
			err := policy(p)
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		if len(errs) == 0 {
			return errNoPolicy
		}
		return errors.Join(errs...)
	}
}
