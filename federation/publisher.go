package federation

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
)

const (
	// HeadInterval is how often a Head goes out when nothing changes.
	HeadInterval = 10 * time.Second
	// HeadLifetime is how long a Head may be taken for new.
	HeadLifetime = 5 * time.Minute
	// changeDelay is how long a change waits for others, to go out as one with them.
	changeDelay = 100 * time.Millisecond
	// publishRetry is the pause after a Head that could not be made or noted on disk.
	publishRetry = time.Second
)

// ownContent is what the own cluster tells, encoded as far as it doesn't depend on numbers. Immutable.
type ownContent struct {
	bundle   trust.Bundle // without revocations
	revoked  [][sha256.Size]byte
	ids      map[spiffeid.ID]time.Time
	marks    map[spiffeid.TrustDomain]uint64 // acknowledged bundles of others
	gateways *record                         // nil: none
	shards   map[uint32]*record
}

// newOwnContent encodes own. With an error, the content is what could be encoded; nil when nothing may be told at all.
func newOwnContent(domain spiffeid.TrustDomain, own Own) (*ownContent, error) {
	bundle := trust.Bundle{Authorities: slices.Clone(own.Roots), JWTAuthorities: maps.Clone(own.JWTKeys)}
	if _, err := trust.MarshalBundle(domain, bundle, 1, 0); err != nil {
		return nil, err
	}
	if err := CheckRevoked(domain, own.Revoked, own.RevokedIDs); err != nil {
		return nil, err // a revocation that is left out lets somebody in
	}
	c := &ownContent{bundle: bundle, revoked: slices.Clone(own.Revoked), ids: maps.Clone(own.RevokedIDs)}
	slices.SortFunc(c.revoked, func(a, b [sha256.Size]byte) int { return bytes.Compare(a[:], b[:]) })
	c.revoked = slices.Compact(c.revoked)
	var marksErr, gatewaysErr, catalogErr error
	c.marks, marksErr = someMarks(own.Acknowledged)
	if c.gateways, gatewaysErr = encodeGateways(domain, own.Gateways, own.PodCIDRs); gatewaysErr != nil {
		gatewaysErr = fmt.Errorf("no gateway is told: %w", gatewaysErr)
	}
	c.shards, catalogErr = encodeCatalog(domain, own.Exports)
	return c, errors.Join(marksErr, gatewaysErr, catalogErr)
}

// CheckRevoked tells whether a Head has room for what is revoked: public keys, and members of the domain.
func CheckRevoked(domain spiffeid.TrustDomain, keys [][sha256.Size]byte, ids map[spiffeid.ID]time.Time) error {
	if n := len(keys); n > maxRevokedKeys {
		return refuse(TooLarge, "%d revoked keys; the limit is %d", n, maxRevokedKeys)
	}
	size := 0
	for id := range ids {
		if !id.MemberOf(domain) || id.Path() == "" {
			return refuse(WrongDomain, "revoked ID %s is no member of %s", id, domain)
		}
		size += len(id.String())
	}
	if len(ids) > maxRevokedIDs || size > maxIDBytes {
		return refuse(TooLarge, "%d revoked IDs of %d bytes; the limits are %d and %d", len(ids), size, maxRevokedIDs, maxIDBytes)
	}
	return nil
}

// someMarks returns as many marks as may be told. Whom one is not told holds its new root back, which is safe.
func someMarks(all map[spiffeid.TrustDomain]uint64) (map[spiffeid.TrustDomain]uint64, error) {
	out, size := make(map[spiffeid.TrustDomain]uint64, len(all)), 0
	for _, td := range slices.SortedFunc(maps.Keys(all), spiffeid.TrustDomain.Compare) {
		if size += len(td.Name()); size > maxMarkBytes || len(out) == maxAcknowledged {
			return out, refuse(TooLarge, "bundles of %d domains are acknowledged; the limits are %d, and %d bytes of names", len(all), maxAcknowledged, maxMarkBytes)
		}
		out[td] = all[td]
	}
	return out, nil
}

// equal reports whether both tell the same.
func (c *ownContent) equal(o *ownContent) bool {
	same := func(a, b *record) bool { return a == b || a != nil && b != nil && a.hash == b.hash }
	return sameBundle(c.bundle, o.bundle) && slices.Equal(c.revoked, o.revoked) &&
		maps.EqualFunc(c.ids, o.ids, time.Time.Equal) && maps.Equal(c.marks, o.marks) &&
		same(c.gateways, o.gateways) && maps.EqualFunc(c.shards, o.shards, same)
}

// sameBundle reports whether both make the same document.
func sameBundle(a, b trust.Bundle) bool {
	return slices.EqualFunc(a.Authorities, b.Authorities, (*x509.Certificate).Equal) &&
		maps.EqualFunc(a.JWTAuthorities, b.JWTAuthorities, func(a, b crypto.PublicKey) bool {
			k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
			return ok && k.Equal(b)
		})
}

// publisher numbers, signs and notes what the own cluster tells. It belongs to the owner loop.
type publisher struct {
	cfg   MemberConfig
	store *store
	saved savedOwn
	log   *slog.Logger

	content *ownContent // last published or to be published
	told    *ownContent // last published
	bundle  *record
	root    *record
	head    *record
	at      mark
	parts   map[Hash]*record // that head names
	refs    []ref

	due time.Time // when the next Head is to be made; zero: not yet
}

func newPublisher(cfg MemberConfig, s *store) *publisher {
	return &publisher{cfg: cfg, store: s, saved: s.loadOwn(), log: cfg.Log}
}

// set notes new content, if it is new; it is due soon.
func (p *publisher) set(c *ownContent, now time.Time) {
	if c == nil || c == p.content {
		return
	}
	same := p.content != nil && p.content.equal(c)
	p.content = c
	if same {
		return
	}
	if soon := now.Add(changeDelay); p.due.IsZero() || soon.Before(p.due) {
		p.due = soon
	}
}

// publish makes the next Head, with number and hash on disk, and returns the records to send, in the order in which receivers
// can use them: a receiver keeps a part only when a Head has named it.
func (p *publisher) publish(wall time.Time) ([]addressed, error) {
	stated, err := p.cfg.Keys.statement(p.cfg.Domain, wall)
	if err != nil {
		return nil, err
	}
	ms := uint64(max(wall.UnixMilli(), 1))
	saved := p.saved
	if saved.Epoch == stated.content.epoch && saved.Seq > ms+uint64(MaxAhead/time.Millisecond) {
		// Our clock was far ahead once. Peers take no such number for as long; a new epoch begins anew.
		p.log.Warn("the last head's number is ahead of the clock; beginning a new epoch", "seq", saved.Seq)
		if rotateErr := p.cfg.Keys.Rotate(p.cfg.Domain, wall); rotateErr != nil {
			p.log.Error("peers will refuse our heads until the clock has caught up", "seq", saved.Seq, "error", rotateErr)
		} else if stated, err = p.cfg.Keys.statement(p.cfg.Domain, wall); err != nil {
			return nil, err
		}
	}
	if saved.Epoch != stated.content.epoch {
		saved.Epoch, saved.Seq, saved.Head = stated.content.epoch, 0, nil
	}
	saved.Seq = max(saved.Seq+1, ms)
	bundle, err := p.nextBundle(&saved)
	if err != nil {
		return nil, err
	}
	parts, refs := p.collect(bundle)
	said := head{
		domain: p.cfg.Domain, cluster: p.cfg.Cluster, region: p.cfg.Region, epoch: saved.Epoch, seq: saved.Seq,
		issued: wall, expires: wall.Add(HeadLifetime), refs: refs, previous: saved.Head,
		revoked: p.content.revoked, revokedIDs: p.content.ids, acknowledged: p.content.marks,
	}
	h, err := said.seal(stated.signing)
	if err != nil {
		return nil, err
	}
	saved.Head, saved.Saved = h.hash[:], wall
	if err := p.store.saveOwn(saved); err != nil {
		return nil, fmt.Errorf("federation: own number: %w", err)
	}

	var out []addressed
	if p.root == nil || p.root.hash != stated.record.hash {
		out = append(out, p.address(stated.record, 0))
	}
	out = append(out, p.address(h, 0))
	for _, f := range refs {
		if p.parts[f.hash] == nil {
			out = append(out, p.address(parts[f.hash], f.index))
		}
	}
	p.saved, p.root, p.head, p.bundle, p.told = saved, stated.record, h, bundle, p.content
	p.at, p.parts, p.refs = mark{saved.Epoch, saved.Seq}, parts, refs
	return out, nil
}

// nextBundle makes the trust bundle. Its sequence grows whenever its bytes change, for whatever cause.
func (p *publisher) nextBundle(saved *savedOwn) (*record, error) {
	if saved.BundleSequence > 0 {
		r, err := encodeBundle(p.cfg.Domain, p.content.bundle, saved.BundleSequence)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(r.hash[:], saved.Bundle) {
			return r, nil
		}
	}
	// As the Head's own number, so that a publisher that lost its disk still moves forward.
	saved.BundleSequence = max(saved.BundleSequence+1, saved.Seq)
	r, err := encodeBundle(p.cfg.Domain, p.content.bundle, saved.BundleSequence)
	if err != nil {
		return nil, err
	}
	saved.Bundle = r.hash[:]
	return r, nil
}

func (p *publisher) collect(bundle *record) (map[Hash]*record, []ref) {
	parts := map[Hash]*record{bundle.hash: bundle}
	refs := []ref{{RecordTrustBundle, 0, bundle.hash}}
	if g := p.content.gateways; g != nil {
		parts[g.hash] = g
		refs = append(refs, ref{RecordGatewaySet, 0, g.hash})
	}
	for _, index := range slices.Sorted(maps.Keys(p.content.shards)) {
		s := p.content.shards[index]
		parts[s.hash] = s
		refs = append(refs, ref{RecordCatalogShard, index, s.hash})
	}
	return parts, refs
}

func (p *publisher) address(r *record, index uint32) addressed {
	return addressed{record: r, subject: subject(p.cfg.Domain, r.kind, index)}
}

// claimed reports whether the record says that it is signed by us.
func (p *publisher) claimed(r *record) bool {
	stated := p.cfg.Keys.present()
	return r.claims(keyID(p.cfg.Keys.Fingerprint())) || stated.record != nil && r.claims(idOf(public(stated.signing)))
}

// heard looks at a record that says it is our own, and came from somebody else. Old ones are echoes. One that we have not
// published means that we have lost our numbers, or that somebody has our key; either way our next number is above it.
func (p *publisher) heard(r *record, wall, now time.Time) error {
	stated := p.cfg.Keys.present()
	if stated.record == nil {
		return refuse(UnknownKey, "%s %s", r.kind, r.hash)
	}
	if r.kind == RecordMemberRoot {
		if !r.verify(stated.content.rootKey) {
			return refuse(BadSignature, "%s of our own", r.kind)
		}
		return errDuplicate
	}
	if !r.verify(public(stated.signing)) {
		return refuse(BadSignature, "%s of our own", r.kind)
	}
	said, err := decodeHead(r)
	if err != nil {
		return err
	}
	at, own := mark{said.epoch, said.seq}, mark{p.saved.Epoch, p.saved.Seq}
	if at.compare(own) < 0 || at == own && bytes.Equal(r.hash[:], p.saved.Head) {
		return errDuplicate
	}
	if limit := wall.Add(MaxAhead).UnixMilli(); at.epoch == stated.content.epoch && at.compare(own) > 0 && said.seq <= uint64(max(limit, 0)) {
		p.saved.Epoch, p.saved.Seq = at.epoch, at.seq
		p.saved.Bundle = nil // its sequence is lost too: take one above all before
		if p.content != nil {
			p.due = now
		}
	}
	return refuse(OwnKeyUsedByOther, "a head of number (%d, %d), and ours is (%d, %d)", at.epoch, at.seq, own.epoch, own.seq)
}
