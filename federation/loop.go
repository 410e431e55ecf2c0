package federation

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// loop is a Member at work: the one owner of everything that records change. Events wake it; what it does follows from the
// state, so that an event too many or too few changes nothing.
type loop struct {
	m     *Member
	own   *publisher
	peers map[topology.ClusterName]*peer
	links map[string]*link
	inbox chan inbound

	sweep time.Time                          // when to ask, although nothing is known to be missing; zero: all are fresh
	fresh map[topology.ClusterName]Freshness // as last told to the log
	group sync.WaitGroup                     // the links' goroutines
}

func newLoop(m *Member) *loop {
	return &loop{
		m:     m,
		own:   newPublisher(m.cfg, m.store),
		peers: make(map[topology.ClusterName]*peer),
		links: make(map[string]*link),
		inbox: make(chan inbound, inboxSize),
		fresh: make(map[topology.ClusterName]Freshness),
	}
}

func (l *loop) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.group.Wait()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := l.step(ctx)
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-l.m.wake:
		case in := <-l.inbox:
			l.handle(in)
			l.drain()
		}
	}
}

// drain handles what else has arrived, so that a burst costs one step.
func (l *loop) drain() {
	for range inboxSize {
		select {
		case in := <-l.inbox:
			l.handle(in)
		default:
			return
		}
	}
}

// step does all that is due, and returns when to come again at the latest.
func (l *loop) step(ctx context.Context) time.Time {
	now := time.Now() // of timers; records are judged by cfg.Now
	wanted := l.m.want()
	l.reconcilePeers(wanted.peers)
	l.reconcileLinks(ctx, wanted.buses)
	l.own.set(wanted.own, now)
	next := l.publishIfDue(now)
	for _, k := range l.links {
		out, later := k.due(now)
		for _, a := range out {
			l.sendRecord(k, a, "answer", now)
		}
		next = earliest(next, later)
	}
	next = earliest(next, l.askIfDue(now))
	return earliest(next, l.show(now))
}

func (l *loop) reconcilePeers(specs map[topology.ClusterName]PeerSpec) {
	for name, p := range l.peers {
		if specs[name] == p.spec {
			continue
		}
		delete(l.peers, name)
		delete(l.fresh, name)
		if err := l.m.store.forget(p.spec.RootFingerprint); err != nil {
			l.m.cfg.Log.Error("records of a former peer stay on disk", "cluster", name.String(), "error", err)
		}
	}
	added := false
	for name, spec := range specs {
		if l.peers[name] == nil {
			l.peers[name] = recall(spec, l.m.store, l.m.cfg.Freshness, l.m.cfg.Log)
			added = true
		}
	}
	if added {
		l.ask(slices.Collect(maps.Values(l.links))...)
	}
}

func (l *loop) reconcileLinks(ctx context.Context, buses map[string]Bus) {
	for name, k := range l.links {
		if buses[name] != k.bus {
			k.cancel()
			delete(l.links, name)
		}
	}
	for name, bus := range buses {
		if l.links[name] == nil && bus != nil {
			l.links[name] = startLink(ctx, &l.group, name, bus, l.inbox, l.m.cfg.Log, l.m.metrics)
		}
	}
}

// publishIfDue makes and sends the next Head, and returns when another is due.
func (l *loop) publishIfDue(now time.Time) time.Time {
	p := l.own
	if p.due.IsZero() || p.due.After(now) {
		return p.due
	}
	out, err := p.publish(l.m.cfg.Now())
	if err != nil {
		l.m.cfg.Log.Error("own head not published; trying again", "error", err)
		p.due = now.Add(jitter(publishRetry))
		return p.due
	}
	l.m.published.Store(&ownBundle{bundle: p.told.bundle, sequence: p.saved.BundleSequence})
	for _, a := range out {
		for _, k := range l.links {
			l.sendRecord(k, a, "own", now)
		}
	}
	p.due = now.Add(HeadInterval)
	return p.due
}

// show publishes the views, and returns when time alone will change one.
func (l *loop) show(now time.Time) time.Time {
	wall := l.m.cfg.Now()
	shown := make(map[topology.ClusterName]*View, len(l.peers))
	var next time.Time
	for name, p := range l.peers {
		v := p.view(wall)
		shown[name] = v
		if at := p.next(wall); !at.IsZero() {
			// Wall time may be set; so look again now and then in any case.
			next = earliest(next, now.Add(min(at.Sub(wall), HeadInterval)))
		}
		if last, ok := l.fresh[name]; ok && last != v.Freshness {
			l.m.cfg.Log.Info("peer is now of another freshness", "cluster", name.String(), "freshness", string(v.Freshness), "before", string(last))
		}
		l.fresh[name] = v.Freshness
	}
	l.m.show(shown)
	return next
}

func (l *loop) handle(in inbound) {
	now := time.Now()
	k := in.link
	if l.links[k.name] != k {
		return
	}
	switch {
	case in.ready:
		l.greet(k, now)
	case in.message.Subject == SubjectWant:
		w, err := decodeWant(in.message.Data)
		if err != nil {
			l.m.metrics.refuse(err)
			return
		}
		l.answer(k, w, now)
	default:
		l.take(k, in.message, now)
	}
}

// greet says who we are to a bus that hears us from now on, and asks for what we missed.
func (l *loop) greet(k *link, now time.Time) {
	if l.own.head != nil {
		l.sendRecord(k, l.own.address(l.own.root, 0), "own", now)
		l.sendRecord(k, l.own.address(l.own.head, 0), "own", now)
	}
	l.ask(k)
}

// take looks at a record, and passes on what is news.
func (l *loop) take(k *link, msg Message, now time.Time) {
	r, err := open(msg.Data)
	if err != nil {
		l.m.metrics.refuse(err)
		return
	}
	p, err := l.accept(r, now)
	refusal, refused := errors.AsType[*Refusal](err)
	if !refused {
		// Only what has been verified counts as heard: else a forged signature could silence those who hold the true one.
		k.heard(r.hash, now)
	}
	switch {
	case err == nil:
		l.m.metrics.accepted.WithLabelValues(p.spec.Cluster.String(), string(r.kind)).Inc()
		p.asked(r, now)
		l.passOn(k, p.address(r), now)
		return
	case !refused:
		return // a duplicate
	}
	l.m.metrics.refuse(err)
	logger := l.m.cfg.Log
	switch refusal.Reason {
	case Equivocation:
		logger.Error("peer told two stories; keeping the last good one", "error", err)
		l.passOn(k, p.address(r), now) // so that everybody sees it
	case NotStored:
		logger.Error("record not used", "error", err)
	case OwnKeyUsedByOther:
		logger.Error("somebody else signs with our key, or our own numbers were lost", "error", err)
	default:
		logger.Debug("record refused", "bus", k.name, "error", err)
	}
}

// accept finds whose the record is, by key or hash, and gives it to that peer.
func (l *loop) accept(r *record, now time.Time) (*peer, error) {
	wall := l.m.cfg.Now()
	switch r.kind {
	case RecordMemberRoot:
		for _, p := range l.peers {
			if r.claims(keyID(p.spec.RootFingerprint)) {
				return p, p.acceptRoot(r, wall)
			}
		}
	case RecordHead:
		if p, err := l.acceptHead(r, wall); p != nil {
			return p, err
		}
	default:
		if l.own.parts[r.hash] != nil {
			return nil, errDuplicate
		}
		err := error(refuse(Unnamed, "%s %s", r.kind, r.hash))
		for _, p := range l.peers {
			if p.names(r.hash) {
				if err = p.acceptPart(r); err == nil {
					return p, nil
				}
			}
		}
		return nil, err
	}
	if l.own.claimed(r) {
		return nil, l.own.heard(r, wall, now)
	}
	return nil, refuse(UnknownKey, "%s %s", r.kind, r.hash)
}

// acceptHead gives a Head to the peer that signed it. Two peers may name the same signing key, so the first that takes it has it.
func (l *loop) acceptHead(r *record, wall time.Time) (*peer, error) {
	var last *peer
	var err error
	for _, p := range l.peers {
		if !p.signs(r) {
			continue
		}
		last, err = p, p.acceptHead(r, wall)
		if refusal, ok := errors.AsType[*Refusal](err); !ok || refusal.Reason != WrongDomain {
			l.watchClock(p, wall, err)
			return p, err
		}
	}
	if last == nil {
		l.hint(r)
	}
	return last, err
}

// hint looks, without believing it, whose Head it is that no known key has signed: if it is of a peer whose MemberRoot we lack,
// we ask for that.
func (l *loop) hint(r *record) {
	said, err := decodeHead(r)
	if err != nil {
		return
	}
	for _, p := range l.peers {
		if p.spec.Domain == said.domain && (p.root == nil || said.epoch > p.at.epoch) {
			p.behind = max(p.behind, 1)
		}
	}
}

// watchClock says aloud when two clocks are far apart, once per peer and alarm.
func (l *loop) watchClock(p *peer, wall time.Time, err error) {
	if err != nil {
		return
	}
	ahead := p.newestSaid.issued.Sub(wall)
	if skewed := ahead > skewAlarm; skewed != p.skewed {
		p.skewed = skewed
		if skewed {
			l.m.cfg.Log.Warn("peer's clock is ahead of ours", "cluster", p.spec.Cluster.String(), "ahead", ahead)
		}
	}
}

// passOn sends news to every other bus, once: what comes back is no news any more.
func (l *loop) passOn(from *link, a addressed, now time.Time) {
	for _, k := range l.links {
		if k != from {
			l.sendRecord(k, a, "passed_on", now)
		}
	}
}

func (l *loop) sendRecord(k *link, a addressed, kind string, now time.Time) {
	k.heard(a.record.hash, now)
	l.send(k, a.message(), kind)
}

func (l *loop) send(k *link, msg Message, kind string) {
	select {
	case k.out <- msg:
		l.m.metrics.published.WithLabelValues(kind).Inc()
	default:
		l.m.metrics.dropped.Inc()
	}
}
