package federation

import (
	"errors"
	"log/slog"
	"slices"

	"golang.org/x/time/rate"
)

// recall makes a peer of what is on disk of it. All of it is verified as if it came from the bus, but for its age: how old it is
// says the view's Freshness.
func recall(spec PeerSpec, s *store, limit Thresholds, logger *slog.Logger) *peer {
	p := &peer{
		spec: spec, store: s, limit: limit, parts: make(map[Hash]*part), saved: make(map[Hash]bool),
		heads: rate.NewLimiter(headsPerSecond, headsBurst),
	}
	mark, marked := s.loadMark(spec.RootFingerprint)
	if marked {
		if err := p.recallMark(mark); err != nil {
			// The numbers stand all the same: they can only make us stricter.
			logger.Error("records beside a peer's mark do not fit and are not used", "cluster", spec.Cluster.String(), "error", err)
		}
	}
	saved, ok := s.loadCut(spec.RootFingerprint)
	if !ok {
		return p
	}
	c, err := p.recallCut(saved)
	if err != nil {
		s.setAside(s.peerDir(spec.RootFingerprint), cutFile, err)
		return p
	}
	if !marked {
		logger.Error("a peer's mark is lost; its last cut is the lower bound now", "cluster", spec.Cluster.String(), "epoch", p.at.epoch, "seq", p.at.seq)
	}
	p.cut = c
	p.complete()
	return p
}

func (p *peer) recallMark(m savedMark) error {
	p.at = mark{m.Epoch, m.Seq}
	p.quarantine = m.Quarantine
	p.bundleSequence = m.BundleSequence
	p.received = m.Received
	copy(p.atHash[:], m.HeadHash)
	copy(p.bundleHash[:], m.BundleHash)
	if len(m.Root) == 0 {
		return nil
	}
	root, said, err := p.recallRoot(m.Root)
	if err != nil {
		return err
	}
	if said.epoch != p.at.epoch {
		return errors.New("the member root is of another epoch")
	}
	p.root, p.rootSaid = root, said
	if len(m.Head) == 0 {
		return nil
	}
	r, h, err := p.recallHead(m.Head, said)
	if err != nil {
		return err
	}
	if at := (mark{h.epoch, h.seq}); at != p.at || r.hash != p.atHash {
		return errors.New("the head is another than the mark's")
	}
	p.newest, p.newestSaid = r, h
	p.remember(numbered{p.at, r.hash})
	return nil
}

// recallCut reads a cut, and raises the marks to it where they are lower.
func (p *peer) recallCut(s savedCut) (*cut, error) {
	root, rootSaid, err := p.recallRoot(s.Root)
	if err != nil {
		return nil, err
	}
	r, said, err := p.recallHead(s.Head, rootSaid)
	if err != nil {
		return nil, err
	}
	parts := make(map[Hash]*part, len(s.Parts))
	for _, raw := range s.Parts {
		d, err := open(raw)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(said.refs, func(f ref) bool { return f.hash == d.hash && f.kind == d.kind })
		if i < 0 {
			return nil, errors.New("a record that its head does not name")
		}
		parts[d.hash] = p.decode(d, said.refs[i])
	}
	// Built by a peer that holds this cut and nothing else: the same code as for what comes from the bus.
	scratch := &peer{
		spec: p.spec, store: new(store), limit: p.limit, parts: parts, root: root, rootSaid: rootSaid,
		newest: r, newestSaid: said, received: s.Received,
	}
	if len(scratch.missing()) > 0 {
		return nil, errors.New("a record that its head names is missing")
	}
	if err := scratch.advance(); err != nil {
		return nil, err
	}
	for h, d := range parts {
		p.parts[h], p.saved[h] = d, true
	}
	if at := (mark{said.epoch, said.seq}); at.compare(p.at) > 0 {
		p.at, p.atHash = at, r.hash
		p.root, p.rootSaid = root, rootSaid
		p.newest, p.newestSaid, p.received = r, said, s.Received
		p.remember(numbered{at, r.hash})
	}
	if scratch.bundleSequence > p.bundleSequence {
		p.bundleSequence, p.bundleHash = scratch.bundleSequence, scratch.bundleHash
	}
	return scratch.cut, nil
}

func (p *peer) recallRoot(raw []byte) (*record, memberRoot, error) {
	r, err := open(raw)
	if err != nil {
		return nil, memberRoot{}, err
	}
	said, err := decodeMemberRoot(r)
	if err != nil {
		return nil, memberRoot{}, err
	}
	if FingerprintOf(said.rootKey) != p.spec.RootFingerprint || !r.verify(said.rootKey) || said.domain != p.spec.Domain {
		return nil, memberRoot{}, errors.New("the member root is not this peer's")
	}
	return r, said, nil
}

func (p *peer) recallHead(raw []byte, root memberRoot) (*record, head, error) {
	r, err := open(raw)
	if err != nil {
		return nil, head{}, err
	}
	if !slices.ContainsFunc(root.signingKeys, r.verify) {
		return nil, head{}, errors.New("the head's signature does not fit")
	}
	said, err := decodeHead(r)
	if err != nil {
		return nil, head{}, err
	}
	if said.domain != p.spec.Domain || said.cluster != p.spec.Cluster || said.epoch != root.epoch {
		return nil, head{}, errors.New("the head is not this peer's")
	}
	return r, said, nil
}

// saveMark puts the mark on disk, with what it was read from.
func (p *peer) saveMark() error {
	m := savedMark{
		Epoch: p.at.epoch, Seq: p.at.seq, HeadHash: p.atHash[:], BundleSequence: p.bundleSequence, BundleHash: p.bundleHash[:],
		Quarantine: p.quarantine, Received: p.received,
	}
	if p.root != nil {
		m.Root = p.root.raw
	}
	if p.newest != nil {
		m.Head = p.newest.raw
	}
	if err := p.store.saveMark(p.spec.RootFingerprint, m); err != nil {
		return refuse(NotStored, "%v", err)
	}
	return nil
}

// saveCut puts the cut on disk, unless the one there holds the same parts: with the mark's Head it then is the same cut.
func (p *peer) saveCut() error {
	c := savedCut{Received: p.cut.received, Root: p.cut.root.raw, Head: p.cut.head.raw}
	saved := make(map[Hash]bool, len(p.cut.said.refs))
	same := len(p.saved) > 0
	for _, f := range p.cut.said.refs {
		saved[f.hash] = true
		same = same && p.saved[f.hash]
		c.Parts = append(c.Parts, p.parts[f.hash].record.raw)
	}
	if same && len(saved) == len(p.saved) {
		return nil
	}
	if err := p.store.saveCut(p.spec.RootFingerprint, c); err != nil {
		return refuse(NotStored, "%v", err)
	}
	p.saved = saved
	return nil
}
