package federation

import (
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/internal/strictproto"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Limits of a Want, and of what it costs us to answer.
const (
	maxMarks      = 1024
	maxWantHashes = 1024
	askHashes     = 256 // in one Want of ours; the rest in the next
	// answerBytesPerSecond and answerBurst bound what one bus hears from us in answer to Wants.
	answerBytesPerSecond = 1 << 20
	answerBurst          = 4 << 20
	answerLeastCost      = 1 << 10 // what a small record counts for
	maxAnswers           = 2048    // waiting to be sent on one bus
)

// The pace of asking and answering.
const (
	askFirst   = 500 * time.Millisecond // what comes by itself comes sooner
	askSlowest = 30 * time.Second
	askBehind  = 3 // how often to ask for what somebody else claims to have
	// askSweep is how often a member asks while a peer isn't Fresh, although nothing tells it of anything to ask for.
	askSweep = 60 * time.Second
	// Whose record it is answers first; the others wait to hear it do so.
	answerOwner  = 50 * time.Millisecond
	answerOthers = 400 * time.Millisecond
	answerPace   = 2 * time.Millisecond // between two records of one domain
	// answerQuiet is how long after a record was on a bus it isn't said there again.
	answerQuiet = 500 * time.Millisecond
)

// jitter returns a time between d/2 and 3d/2.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) } //nolint:gosec // G404: spreads load, guards nothing

// want is Want, parsed.
type want struct {
	have   map[spiffeid.TrustDomain]mark
	hashes []Hash
}

func (w want) encode() ([]byte, error) {
	p := new(federationv1.Want)
	for td, m := range w.have {
		p.Have = append(p.Have, &federationv1.Mark{TrustDomain: td.Name(), Epoch: m.epoch, Seq: m.seq})
	}
	for _, h := range w.hashes {
		p.Hashes = append(p.Hashes, h[:])
	}
	return proto.Marshal(p)
}

func decodeWant(b []byte) (want, error) {
	p := new(federationv1.Want)
	if err := strictproto.Unmarshal(b, p, strictproto.Limits{Bytes: MaxPayload, Depth: 2, Repeated: max(maxMarks, maxWantHashes)}); err != nil {
		return want{}, refuse(Malformed, "want: %v", err)
	}
	w := want{have: make(map[spiffeid.TrustDomain]mark, len(p.GetHave()))}
	for _, m := range p.GetHave() {
		td, err := decodeDomain("want", m.GetTrustDomain())
		if err != nil {
			return want{}, err
		}
		if _, twice := w.have[td]; twice {
			return want{}, refuse(Malformed, "want: %q twice", td.Name())
		}
		w.have[td] = mark{m.GetEpoch(), m.GetSeq()}
	}
	for _, h := range p.GetHashes() {
		if len(h) != len(Hash{}) {
			return want{}, refuse(Malformed, "want: hash of %d bytes", len(h))
		}
		w.hashes = append(w.hashes, Hash(h))
	}
	return w, nil
}

// asking is when to send the next Want because of one peer. Times are of timers.
type asking struct {
	at    time.Time // zero: nothing is missing
	delay time.Duration
}

// soon notes that something new is missing, or that some of what was missing has come: the rest is asked for soon.
func (a *asking) soon(now time.Time) {
	a.delay = askFirst
	a.at = earliest(a.at, now.Add(jitter(a.delay)))
}

// asked notes that a Want went out, and puts the next off.
func (a *asking) asked(now time.Time) {
	a.delay = min(2*a.delay, askSlowest)
	a.at = now.Add(jitter(a.delay))
}

// wants returns what to ask for: the marks of all peers, and single records.
func (l *loop) wants() want {
	w := want{have: make(map[spiffeid.TrustDomain]mark, len(l.peers)+1)}
	w.have[l.m.cfg.Domain] = mark{l.own.saved.Epoch, l.own.saved.Seq}
	for _, name := range slices.SortedFunc(maps.Keys(l.peers), topology.ClusterName.Compare) {
		p := l.peers[name]
		w.have[p.spec.Domain] = p.known()
		w.hashes = append(w.hashes, p.missing()...)
	}
	if len(w.hashes) > askHashes {
		rand.Shuffle(len(w.hashes), func(i, j int) { w.hashes[i], w.hashes[j] = w.hashes[j], w.hashes[i] }) //nolint:gosec // G404: a fair choice, not a secret one
		w.hashes = w.hashes[:askHashes]
	}
	return w
}

// known is how far the records at hand go: the mark, unless what it was read from is lost.
func (p *peer) known() mark {
	switch {
	case p.root == nil:
		return mark{}
	case p.newest == nil:
		return mark{epoch: p.rootSaid.epoch}
	}
	return p.at
}

// ask sends a Want on one bus, or on all.
func (l *loop) ask(on ...*link) {
	b, err := l.wants().encode()
	if err != nil {
		l.m.cfg.Log.Error("want could not be encoded", "error", err)
		return
	}
	for _, k := range on {
		l.send(k, Message{SubjectWant, b}, "want")
	}
}

// askIfDue sends the Wants that are due, and returns when the next may be.
func (l *loop) askIfDue(now time.Time) time.Time {
	wall := l.m.cfg.Now()
	due, stale := false, false
	for _, p := range l.peers {
		switch missing := p.behind > 0 || len(p.missing()) > 0; {
		case !missing:
			p.asking = asking{}
		case p.asking.at.IsZero():
			p.asking.soon(now)
		default:
			due = due || !p.asking.at.After(now)
		}
		stale = stale || p.view(wall).Freshness != Fresh
	}
	switch {
	case !stale:
		l.sweep = time.Time{}
	case l.sweep.IsZero():
		l.sweep = now.Add(jitter(askSweep))
	case !l.sweep.After(now):
		due = true
		l.sweep = now.Add(jitter(askSweep))
	}
	next := l.sweep
	if due {
		l.ask(slices.Collect(maps.Values(l.links))...)
	}
	for _, p := range l.peers {
		if due && !p.asking.at.IsZero() { // the Want asked for what it lacks, too
			p.behind = max(p.behind-1, 0)
			p.asking.asked(now)
		}
		next = earliest(next, p.asking.at)
	}
	return next
}

// answer plans what to send on a bus to somebody who wants it.
func (l *loop) answer(k *link, w want, now time.Time) {
	if l.own.head != nil {
		have, asked := w.have[l.m.cfg.Domain]
		l.offer(k, w, l.own.holding(), have, asked, now)
	}
	for _, p := range l.peers {
		have, asked := w.have[p.spec.Domain]
		if asked && p.quarantine == "" && have.compare(p.at) > 0 {
			p.behind = askBehind // who asks seems to hold more than we do
		}
		l.offer(k, w, p.holding(), have, asked, now)
	}
}

// holding is what can be offered of one domain.
type holding struct {
	own     bool
	domain  spiffeid.TrustDomain
	at      mark
	root    *record
	head    *record // nil: none, or it has ended
	indexes map[Hash]uint32
	parts   map[Hash]*record
	expires time.Time
}

func (l *loop) offer(k *link, w want, h holding, have mark, asked bool, now time.Time) {
	// One after the other in this order, because a part that comes before its Head is of no use, and not all at once, for
	// readers that are slow.
	at := now.Add(answerOwner + rand.N(answerOthers)) //nolint:gosec // G404: spreads load
	if h.own {
		at = now.Add(rand.N(answerOwner)) //nolint:gosec // G404: likewise
	}
	give := func(r *record, index uint32) {
		k.plan(addressed{r, subject(h.domain, r.kind, index)}, at)
		at = at.Add(answerPace)
	}
	current := h.head != nil && h.expires.After(l.m.cfg.Now())
	if asked && h.root != nil && have.epoch < h.at.epoch {
		give(h.root, 0)
	}
	if asked && current && have.compare(h.at) < 0 {
		give(h.head, 0)
		if have == (mark{}) {
			for hash, r := range h.parts {
				give(r, h.indexes[hash])
			}
		}
	}
	for _, hash := range w.hashes {
		if r := h.parts[hash]; r != nil {
			give(r, h.indexes[hash])
		}
	}
}

func (p *publisher) holding() holding {
	h := holding{own: true, domain: p.cfg.Domain, at: p.at, root: p.root, head: p.head, parts: p.parts, indexes: indexes(p.refs)}
	if p.head != nil {
		h.expires = p.saved.Saved.Add(HeadLifetime)
	}
	return h
}

func (p *peer) holding() holding {
	h := holding{
		domain: p.spec.Domain, at: p.known(), root: p.root, head: p.newest, expires: p.newestSaid.expires,
		indexes: indexes(p.newestSaid.refs), parts: make(map[Hash]*record, len(p.parts)),
	}
	if p.cut != nil {
		maps.Copy(h.indexes, indexes(p.cut.said.refs))
	}
	for hash, d := range p.parts {
		h.parts[hash] = d.record
	}
	return h
}

func indexes(refs []ref) map[Hash]uint32 {
	m := make(map[Hash]uint32, len(refs))
	for _, f := range refs {
		m[f.hash] = f.index
	}
	return m
}

// earliest returns the earlier of times that aren't zero; zero if all are.
func earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}
