package control

import (
	"cmp"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/trust"
)

// Limits of what is revoked. Of the own domain the federation tells no more than federation.CheckRevoked lets through.
const (
	maxRevocations     = 4096
	maxRevocationsFile = 8 << 20
	maxReason          = 256 // bytes
	maxIssued          = 100_000
)

// The kinds of what is revoked.
const (
	revokedDomain = "domain"
	revokedID     = "id"
	revokedKey    = "key"
)

// foreignLife is how long an SVID of a peer's may live at most, for all that is known of it here: its own authority issues them for an hour, an
// upstream of its for whatever that likes, and hardly for longer than a day.
const foreignLife = 24 * time.Hour

// endsAfter is how long after the last that was issued has ended a revocation of it is kept: for clocks that are behind.
const endsAfter = 5 * time.Minute

var (
	errRevocation   = errors.New("revocation")
	errRevokeNot    = errors.New("it can't be revoked")
	errManyRevoked  = errors.New("too much is revoked: undo what has no use any more")
	errNotRevoked   = errors.New("it is not revoked")
	errBlocked      = errors.New("the identity is revoked, and blocked until that is undone")
	subjectExamples = `want a trust domain ("us.example.org"), a SPIFFE ID ("spiffe://us.example.org/ns/shop/sa/web"), or the key ID of an SVID ("sha256:" and 64 hex digits)`
)

// revocation ends trust in something. Immutable.
type revocation struct {
	Subject string    `json:"subject"`
	Kind    string    `json:"kind"`
	Block   bool      `json:"block,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	At      time.Time `json:"at"`
	Ends    time.Time `json:"ends,omitzero"`
	// TrustDomain is whose a key is, where that is known.
	TrustDomain string `json:"trust_domain,omitempty"`

	domain spiffeid.TrustDomain
	id     spiffeid.ID
	key    [sha256.Size]byte
}

// parse fills in what the subject is.
func (r *revocation) parse() error {
	if digits, ok := strings.CutPrefix(r.Subject, "sha256:"); ok {
		sum, err := hex.DecodeString(digits)
		if err != nil || len(sum) != sha256.Size || hex.EncodeToString(sum) != digits {
			return fmt.Errorf("%w: %q: %s", errRevocation, clip(r.Subject, 100), subjectExamples)
		}
		r.Kind, r.key = revokedKey, [sha256.Size]byte(sum)
		if r.TrustDomain != "" {
			if _, err = spiffeid.TrustDomainFromString(r.TrustDomain); err != nil {
				return fmt.Errorf("%w: trust domain: %w", errRevocation, err)
			}
		}
		return nil
	}
	if id, err := spiffeid.FromString(r.Subject); err == nil && id.Path() != "" {
		r.Kind, r.id, r.Subject = revokedID, id, id.String()
		return nil
	}
	td, err := spiffeid.TrustDomainFromString(r.Subject)
	if err != nil {
		return fmt.Errorf("%w: %q: %s", errRevocation, clip(r.Subject, 100), subjectExamples)
	}
	r.Kind, r.domain, r.Subject = revokedDomain, td, td.Name()
	return nil
}

// told tells whether it is of a domain, or may be, so that the domain's peers are to know.
func (r *revocation) told(own spiffeid.TrustDomain) bool {
	switch r.Kind {
	case revokedKey:
		return r.TrustDomain == "" || r.TrustDomain == own.Name()
	case revokedID:
		return r.id.MemberOf(own)
	}
	return false
}

// until is up to when what was issued to the ID must not pass: zero is all.
func (r *revocation) until() time.Time {
	if r.Block {
		return time.Time{}
	}
	return r.At.Truncate(time.Second)
}

// revokedSet is all that is revoked at one moment. Immutable; nil is nothing.
type revokedSet struct {
	all []revocation // ordered by subject
}

func (s *revokedSet) list() []revocation {
	if s == nil {
		return nil
	}
	return s.all
}

func (s *revokedSet) find(subject string) (revocation, bool) {
	i, ok := slices.BinarySearchFunc(s.list(), subject, func(r revocation, subject string) int { return cmp.Compare(r.Subject, subject) })
	if !ok {
		return revocation{}, false
	}
	return s.all[i], true
}

// domain tells whether a whole domain is revoked.
func (s *revokedSet) domain(td spiffeid.TrustDomain) bool {
	_, ok := s.find(td.Name())
	return ok
}

// id tells whether what was issued to an ID is revoked, up to when, and whether nothing may be issued to it.
func (s *revokedSet) id(id spiffeid.ID) (until time.Time, blocked bool) {
	r, ok := s.find(id.String())
	if !ok {
		return time.Time{}, false
	}
	return r.until(), r.Block
}

// onto returns a domain's bundle with what is revoked here of it. Whose a key is isn't known, so a revoked key is in all of them.
func (s *revokedSet) onto(td spiffeid.TrustDomain, b trust.Bundle) trust.Bundle {
	keys, ids := maps.Clone(b.Revoked), maps.Clone(b.RevokedIDs)
	for _, r := range s.list() {
		switch {
		case r.Kind == revokedKey:
			if keys == nil {
				keys = make(map[[sha256.Size]byte]struct{})
			}
			keys[r.key] = struct{}{}
		case r.Kind == revokedID && r.id.MemberOf(td):
			if ids == nil {
				ids = make(map[spiffeid.ID]time.Time)
			}
			until := r.until()
			if said, ok := ids[r.id]; ok && (said.IsZero() || !until.IsZero() && said.After(until)) {
				until = said // its own domain is stricter
			}
			ids[r.id] = until
		}
	}
	b.Revoked, b.RevokedIDs = keys, ids
	return b
}

// unrevoked returns the authorities of a bundle without those that are revoked.
func unrevoked(b trust.Bundle) trust.Bundle {
	out := trust.Bundle{JWTAuthorities: make(map[string]crypto.PublicKey, len(b.JWTAuthorities))}
	for _, root := range b.Authorities {
		if _, revoked := b.Revoked[trust.Fingerprint(root)]; !revoked {
			out.Authorities = append(out.Authorities, root)
		}
	}
	for id, key := range b.JWTAuthorities {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			continue // nothing could be verified with it
		}
		if _, revoked := b.Revoked[sha256.Sum256(der)]; !revoked {
			out.JWTAuthorities[id] = key
		}
	}
	return out
}

// own returns what peers are told: of the own domain, and keys of which it isn't known whose they are.
func (s *revokedSet) own(td spiffeid.TrustDomain) (keys [][sha256.Size]byte, ids map[spiffeid.ID]time.Time) {
	ids = make(map[spiffeid.ID]time.Time)
	for _, r := range s.list() {
		switch {
		case !r.told(td):
		case r.Kind == revokedKey:
			keys = append(keys, r.key)
		default:
			ids[r.id] = r.until()
		}
	}
	return keys, ids
}

// issuedSVID is whose a key is that an SVID was issued for.
type issuedSVID struct {
	id   spiffeid.ID
	ends time.Time
}

// revocations is what is revoked, on disk before it counts. Safe for concurrent use.
type revocations struct {
	path   string
	domain spiffeid.TrustDomain
	life   time.Duration // of the own SVIDs; 0: somebody else issues them, for as long as they like
	now    func() time.Time

	current atomic.Pointer[revokedSet]

	mu     sync.Mutex                       // one change at a time
	issued map[[sha256.Size]byte]issuedSVID // guarded by mu; since the start, and not ended
}

func openRevocations(path string, domain spiffeid.TrustDomain, life time.Duration, now func() time.Time) (*revocations, error) {
	r := &revocations{path: path, domain: domain, life: life, now: now, issued: make(map[[sha256.Size]byte]issuedSVID)}
	data, err := atomicfile.Read(path, maxRevocationsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("control: revocations: %w", err)
	}
	var all []revocation
	if err = json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("control: revocations: %s: %w", path, err) // to go on without would let in who was put out
	}
	for i := range all {
		if err = all[i].parse(); err != nil {
			return nil, fmt.Errorf("control: revocations: %s: %w", path, err)
		}
	}
	slices.SortFunc(all, func(a, b revocation) int { return cmp.Compare(a.Subject, b.Subject) })
	r.current.Store(&revokedSet{all})
	return r, nil
}

func (r *revocations) load() *revokedSet { return r.current.Load() }

// note takes down whom an SVID was issued to.
func (r *revocations) note(key [sha256.Size]byte, id spiffeid.ID, ends time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.issued) >= maxIssued {
		now := r.now()
		maps.DeleteFunc(r.issued, func(_ [sha256.Size]byte, s issuedSVID) bool { return !now.Before(s.ends) })
	}
	if len(r.issued) < maxIssued {
		r.issued[key] = issuedSVID{id, ends}
	}
}

// holder returns whom a key's SVID was issued to, if that was here, since the start.
func (r *revocations) holder(key [sha256.Size]byte) (issuedSVID, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.issued[key]
	return s, ok
}

// add revokes something, as of now. A second time it counts anew. With dry nothing changes.
func (r *revocations) add(ask admin.Revocation, dry bool) (revocation, error) {
	next := revocation{Subject: ask.Subject, Block: ask.Block, Reason: ask.Reason, At: r.now(), TrustDomain: ask.TrustDomain}
	if err := next.parse(); err != nil {
		return next, err
	}
	switch {
	case len(next.Reason) > maxReason:
		return next, fmt.Errorf("%w: a reason of %d bytes: at most %d", errRevocation, len(next.Reason), maxReason)
	case next.Block && next.Kind != revokedID:
		return next, fmt.Errorf("%w: block is for a SPIFFE ID: a %s is revoked until that is undone", errRevocation, next.Kind)
	case next.Kind == revokedDomain && next.domain == r.domain:
		return next, fmt.Errorf("%w: %s is this cluster's own: rotate its root, or revoke its members", errRevokeNot, r.domain.Name())
	case next.Kind == revokedID && next.id.MemberOf(r.domain) && trust.IsControl(next.id):
		return next, fmt.Errorf("%w: %s is control itself: rotate the root", errRevokeNot, next.id)
	}
	s, known := r.holder(next.key)
	switch {
	case next.Kind == revokedKey && known:
		if trust.IsControl(s.id) {
			return next, fmt.Errorf("%w: the key is of control itself: rotate the root", errRevokeNot)
		}
		next.Ends, next.TrustDomain = s.ends.Add(endsAfter), r.domain.Name()
	case next.Kind == revokedKey && !ask.Ends.IsZero():
		next.Ends = ask.Ends.Add(endsAfter)
		if least := next.At.Add(r.life + endsAfter); next.Ends.Before(least) {
			next.Ends = least // the file may be of the certificate before
		}
	case next.Kind != revokedID || next.Block:
	case next.id.MemberOf(r.domain) && r.life <= 0: // who issues them lets them last as long as he likes
	case next.id.MemberOf(r.domain):
		next.Ends = next.At.Add(r.life + endsAfter)
	case ask.Ends.After(next.At):
		next.Ends = ask.Ends.Add(endsAfter)
	}
	if next.Kind != revokedKey {
		next.TrustDomain = ""
	}
	return next, r.change(dry, func(all []revocation) ([]revocation, error) {
		all = slices.DeleteFunc(all, func(o revocation) bool { return o.Subject == next.Subject })
		if len(all) >= maxRevocations {
			return nil, fmt.Errorf("%w: %d, at most %d", errManyRevoked, len(all)+1, maxRevocations)
		}
		return append(all, next), nil
	})
}

// remove undoes a revocation.
func (r *revocations) remove(subject string) error {
	gone := revocation{Subject: subject}
	if err := gone.parse(); err != nil {
		return err
	}
	return r.change(false, func(all []revocation) ([]revocation, error) {
		left := slices.DeleteFunc(all, func(o revocation) bool { return o.Subject == gone.Subject })
		if len(left) == len(all) {
			return nil, fmt.Errorf("%s: %w", gone.Subject, errNotRevoked)
		}
		return left, nil
	})
}

// prune drops what speaks only of what has ended by itself, and returns when to come again; 0: need not.
func (r *revocations) prune() (changed bool, again time.Duration, err error) {
	now := r.now()
	over := func(o revocation) bool { return !o.Ends.IsZero() && !now.Before(o.Ends) }
	if slices.ContainsFunc(r.load().list(), over) {
		err = r.change(false, func(all []revocation) ([]revocation, error) { return slices.DeleteFunc(all, over), nil })
		changed = err == nil
	}
	for _, o := range r.load().list() {
		if !o.Ends.IsZero() {
			again = earliest(again, max(time.Second, o.Ends.Sub(now)))
		}
	}
	return changed, again, err
}

// change puts what edit makes of the list on disk, and then in force. edit gets a copy.
func (r *revocations) change(dry bool, edit func([]revocation) ([]revocation, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, err := edit(slices.Clone(r.load().list()))
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b revocation) int { return cmp.Compare(a.Subject, b.Subject) })
	next := &revokedSet{all}
	keys, ids := next.own(r.domain)
	if err = federation.CheckRevoked(r.domain, keys, ids); err != nil {
		return fmt.Errorf("%w: %w", errManyRevoked, err)
	}
	if dry {
		return nil
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("control: revocations: %w", err)
	}
	if err = atomicfile.Write(r.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("control: revocations: %w", err)
	}
	r.current.Store(next)
	return nil
}
