package federation

import (
	"cmp"
	"crypto/ed25519"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/isthmus-mesh/isthmus/trust"
)

const (
	// MaxAhead is how far a peer's clock may run ahead of ours: what is issued or numbered later than that is refused, so that
	// a stolen key can't use the numbers up.
	MaxAhead = 5 * time.Minute
	// skewAlarm is the difference between two clocks that is said aloud.
	skewAlarm = 60 * time.Second
	// recentHeads is how many of a peer's last Heads are remembered, to see a second history that is told late.
	recentHeads = 64
	// headsPerSecond and headsBurst bound how many Heads of one peer are taken: each costs a write to disk here, and a message
	// on every bus. An honest peer changes at most ten times a second.
	headsPerSecond = 10
	headsBurst     = 30
)

// mark is a position in what a peer says; of two, the higher is the newer.
type mark struct{ epoch, seq uint64 }

func (m mark) compare(o mark) int {
	return cmp.Or(cmp.Compare(m.epoch, o.epoch), cmp.Compare(m.seq, o.seq))
}

// numbered is a Head by number and hash.
type numbered struct {
	at   mark
	hash Hash
}

// peer is what is known of one pinned peer. Records go in by accept…, in any order and any number of times; views come out, and
// each is of one consistent cut: the records that one Head names, and no other. It belongs to the owner loop. Each accept…
// returns nil for news that is now in force and on disk, errDuplicate for what is held already, else a *Refusal.
type peer struct {
	spec  PeerSpec
	store *store
	limit Thresholds

	root     *record
	rootSaid memberRoot

	// at is the high-water mark. It is never below the Head that is held, and may be above it after a loss of the rest.
	at     mark
	atHash Hash
	// newest is the Head at the mark; received is when it came. The parts that it names may be missing yet.
	newest     *record
	newestSaid head
	received   time.Time

	// bundleSequence and bundleHash are of the trust bundle that was last in force: a lower one is never taken.
	bundleSequence uint64
	bundleHash     Hash

	// parts are the records at hand, of those that newest and cut name.
	parts map[Hash]*part
	cut   *cut
	saved map[Hash]bool // what the cut on disk holds

	recent     []numbered // ring, newest last
	quarantine string
	problem    string        // why newest isn't in force, when its parts are all there
	skewed     bool          // its clock is ahead of ours by more than skewAlarm
	wanting    map[Hash]bool // what was missing when it was last looked at
	asking     asking
	heads      *rate.Limiter // how many are taken
	behind     int           // how often to ask yet, because somebody seems to hold newer records
}

// part is a record without a signature of its own, decoded once.
type part struct {
	record   *record
	err      error // it is not what it should be: the Head that names it can't come into force
	anchors  anchors
	gateways []Gateway
	pods     []netip.Prefix
	exports  []Export
}

// cut is a Head and all that it names.
type cut struct {
	root, head *record
	said       head
	received   time.Time
	notAfter   time.Time
	bundle     trust.Bundle
	sequence   uint64 // of the bundle
	gateways   []Gateway
	pods       []netip.Prefix
	exports    []Export
}

// acceptRoot takes a MemberRoot.
func (p *peer) acceptRoot(r *record, now time.Time) error {
	said, err := decodeMemberRoot(r) // the key is in the payload; it counts only when it has the pinned fingerprint
	if err != nil {
		return err
	}
	switch {
	case FingerprintOf(said.rootKey) != p.spec.RootFingerprint:
		return refuse(UnknownKey, "%s of %s: its key is not the pinned one", r.kind, p.spec.Cluster)
	case !r.verify(said.rootKey):
		return refuse(BadSignature, "%s of %s", r.kind, p.spec.Cluster)
	case said.domain != p.spec.Domain:
		return refuse(WrongDomain, "%s of %s speaks of %q", r.kind, p.spec.Cluster, said.domain.Name())
	case p.root != nil && said.epoch == p.rootSaid.epoch && r.hash == p.root.hash:
		return errDuplicate
	case p.root != nil && said.epoch == p.rootSaid.epoch:
		return p.quarantineBy(refuse(Equivocation, "two member roots of epoch %d", said.epoch))
	case said.epoch < p.at.epoch:
		return refuse(Replayed, "%s of %s: epoch %d, and %d has been seen", r.kind, p.spec.Cluster, said.epoch, p.at.epoch)
	case said.issued.After(now.Add(MaxAhead)):
		return refuse(InFuture, "%s of %s: issued %s", r.kind, p.spec.Cluster, said.issued)
	case !said.notAfter.After(now):
		return refuse(HasExpired, "%s of %s: ended %s", r.kind, p.spec.Cluster, said.notAfter)
	}
	next := *p
	next.root, next.rootSaid = r, said
	if said.epoch > p.at.epoch {
		// Another key signs from here on: what the old one signed, and what it did wrong, is over.
		next.at, next.atHash = mark{epoch: said.epoch}, Hash{}
		next.newest, next.newestSaid = nil, head{}
		next.recent, next.quarantine, next.problem = nil, "", ""
	}
	if err := next.saveMark(); err != nil {
		return err
	}
	*p = next
	p.behind = max(p.behind, 1) // ask for its Head
	p.prune()
	return nil
}

// signs reports whether the record's signature claims one of the peer's present signing keys.
func (p *peer) signs(r *record) bool {
	return slices.ContainsFunc(p.rootSaid.signingKeys, func(k ed25519.PublicKey) bool { return r.claims(idOf(k)) })
}

// acceptHead takes a Head.
func (p *peer) acceptHead(r *record, now time.Time) error {
	if !slices.ContainsFunc(p.rootSaid.signingKeys, r.verify) {
		return refuse(BadSignature, "%s of %s", r.kind, p.spec.Cluster)
	}
	said, err := decodeHead(r)
	if err != nil {
		return err
	}
	at := mark{said.epoch, said.seq}
	switch {
	case said.domain != p.spec.Domain:
		return refuse(WrongDomain, "%s of %s speaks of %q", r.kind, p.spec.Cluster, said.domain.Name())
	case said.cluster != p.spec.Cluster:
		return refuse(WrongCluster, "%s of %s names itself %q", r.kind, p.spec.Cluster, said.cluster)
	case said.epoch != p.rootSaid.epoch:
		return refuse(Replayed, "%s of %s: epoch %d, and this is epoch %d", r.kind, p.spec.Cluster, said.epoch, p.rootSaid.epoch)
	case p.contradicts(at, r.hash):
		return p.quarantineBy(refuse(Equivocation, "two heads with number (%d, %d)", at.epoch, at.seq))
	case at == p.at && r.hash == p.atHash && p.newest == nil:
		// Held before, and lost from disk since: it may come back, but not in another form.
	case at.compare(p.at) == 0:
		return errDuplicate
	case slices.Contains(p.recent, numbered{at, r.hash}):
		return errDuplicate
	case at.compare(p.at) < 0:
		return refuse(Replayed, "%s of %s: number %d, and %d has been seen", r.kind, p.spec.Cluster, at.seq, p.at.seq)
	}
	ahead := now.Add(MaxAhead)
	switch {
	case p.quarantine != "":
		return refuse(InQuarantine, "%s of %s", r.kind, p.spec.Cluster)
	case said.issued.After(ahead) || at.seq > uint64(max(ahead.UnixMilli(), 0)):
		return refuse(InFuture, "%s of %s: issued %s, number %d", r.kind, p.spec.Cluster, said.issued, at.seq)
	case !said.expires.After(now):
		return refuse(HasExpired, "%s of %s: ended %s", r.kind, p.spec.Cluster, said.expires)
	case !p.rootSaid.notAfter.After(now):
		return refuse(HasExpired, "%s of %s: its %s ended %s", r.kind, p.spec.Cluster, RecordMemberRoot, p.rootSaid.notAfter)
	case !p.heads.AllowN(now, 1):
		return refuse(TooMany, "%s of %s", r.kind, p.spec.Cluster)
	}
	next := *p
	next.at, next.atHash = at, r.hash
	next.newest, next.newestSaid, next.received, next.problem, next.behind = r, said, now, "", 0
	if err := next.saveMark(); err != nil {
		return err
	}
	*p = next
	p.remember(numbered{at, r.hash})
	p.prune()
	p.complete()
	return nil
}

// contradicts reports whether another Head with that number has been seen.
func (p *peer) contradicts(at mark, hash Hash) bool {
	if at == p.at && p.at.seq != 0 && p.atHash != hash {
		return true
	}
	return slices.ContainsFunc(p.recent, func(n numbered) bool { return n.at == at && n.hash != hash })
}

func (p *peer) remember(n numbered) {
	if len(p.recent) >= recentHeads {
		p.recent = slices.Delete(slices.Clone(p.recent), 0, 1)
	}
	p.recent = append(slices.Clip(p.recent), n)
}

// quarantineBy notes an equivocation, on disk too, and returns it. What was good stays.
func (p *peer) quarantineBy(r *Refusal) error {
	if p.quarantine != "" {
		return refuse(InQuarantine, "%s", r.Detail)
	}
	p.quarantine = r.Detail
	if err := p.saveMark(); err != nil {
		return err
	}
	return r
}

// acceptPart takes a record by its hash, if the newest Head names it.
func (p *peer) acceptPart(r *record) error {
	if _, held := p.parts[r.hash]; held {
		return errDuplicate
	}
	i := slices.IndexFunc(p.newestSaid.refs, func(f ref) bool { return f.hash == r.hash && f.kind == r.kind })
	if p.newest == nil || i < 0 {
		return refuse(Unnamed, "%s %s", r.kind, r.hash)
	}
	p.parts[r.hash] = p.decode(r, p.newestSaid.refs[i])
	p.complete()
	return nil
}

// address returns the record and where it goes.
func (p *peer) address(r *record) addressed {
	a := addressed{r, subject(p.spec.Domain, r.kind, 0)}
	if i := slices.IndexFunc(p.newestSaid.refs, func(f ref) bool { return f.hash == r.hash }); i >= 0 {
		a.subject = subject(p.spec.Domain, r.kind, p.newestSaid.refs[i].index)
	}
	return a
}

// names reports whether the newest Head, or the cut, names that hash.
func (p *peer) names(h Hash) bool {
	has := func(f ref) bool { return f.hash == h }
	return slices.ContainsFunc(p.newestSaid.refs, has) || p.cut != nil && slices.ContainsFunc(p.cut.said.refs, has)
}

func (p *peer) decode(r *record, f ref) *part {
	d := &part{record: r}
	switch f.kind {
	case RecordTrustBundle:
		d.anchors, d.err = decodeBundle(r, p.spec.Domain)
	case RecordGatewaySet:
		d.gateways, d.pods, d.err = decodeGateways(r, p.spec.Domain)
	default:
		d.exports, d.err = decodeCatalog(r, p.spec.Domain, f.index)
	}
	return d
}

// missing returns the hashes that the newest Head names and nobody has sent yet.
func (p *peer) missing() []Hash {
	var hashes []Hash
	for _, f := range p.newestSaid.refs {
		if _, ok := p.parts[f.hash]; !ok {
			hashes = append(hashes, f.hash)
		}
	}
	return hashes
}

// complete puts the newest Head in force once all that it names is there: in one step, from one consistent cut to the next.
func (p *peer) complete() {
	if p.newest == nil || p.cut != nil && p.cut.head.hash == p.newest.hash || len(p.missing()) > 0 {
		return
	}
	if err := p.advance(); err != nil {
		p.problem = err.Error()
		return
	}
	p.problem = ""
	p.prune()
}

func (p *peer) advance() error {
	c := &cut{root: p.root, head: p.newest, said: p.newestSaid, received: p.received, notAfter: p.rootSaid.notAfter}
	bundle := Hash{}
	var found anchors
	for _, f := range c.said.refs {
		d := p.parts[f.hash]
		if d.err != nil {
			return d.err
		}
		switch f.kind {
		case RecordTrustBundle:
			found, bundle = d.anchors, f.hash
		case RecordGatewaySet:
			c.gateways, c.pods = d.gateways, d.pods
		default:
			c.exports = append(c.exports, d.exports...)
		}
	}
	if found.sequence < p.bundleSequence || found.sequence == p.bundleSequence && p.bundleHash != (Hash{}) && bundle != p.bundleHash {
		return refuse(BundleWentBack, "trust bundle %s with sequence %d, after %s with %d", bundle, found.sequence, p.bundleHash, p.bundleSequence)
	}
	c.bundle = found.bundle
	c.bundle.Revoked = make(map[[32]byte]struct{}, len(c.said.revoked))
	for _, key := range c.said.revoked {
		c.bundle.Revoked[key] = struct{}{}
	}
	c.bundle.RevokedIDs, c.sequence = c.said.revokedIDs, found.sequence
	if found.notAfter.Before(c.notAfter) {
		c.notAfter = found.notAfter
	}
	slices.SortFunc(c.exports, func(a, b Export) int { return a.Name.Compare(b.Name) })
	if p.cut != nil && slices.Equal(p.cut.said.refs, c.said.refs) {
		// The same parts under a newer Head: readers see that nothing has changed by the slices being the same.
		c.gateways, c.pods, c.exports = p.cut.gateways, p.cut.pods, p.cut.exports
	}
	next := *p
	next.bundleSequence, next.bundleHash, next.cut = found.sequence, bundle, c
	if bundle != p.bundleHash {
		if err := next.saveMark(); err != nil {
			return err
		}
	}
	if err := next.saveCut(); err != nil {
		return err
	}
	*p = next
	return nil
}

// asked notes, after r was accepted, whether to ask soon: when something is missing that was not before, or some of it came.
func (p *peer) asked(r *record, now time.Time) {
	missing := p.missing()
	soon := r.kind != RecordHead
	wanting := make(map[Hash]bool, len(missing))
	for _, h := range missing {
		wanting[h] = true
		soon = soon || !p.wanting[h]
	}
	p.wanting = wanting
	if soon && (len(missing) > 0 || p.behind > 0) {
		p.asking.soon(now)
	}
}

// prune lets go of parts that neither the newest Head nor the cut names.
func (p *peer) prune() {
	for h := range p.parts {
		if !p.names(h) {
			delete(p.parts, h)
		}
	}
}
