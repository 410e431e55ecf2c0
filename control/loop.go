package control

import (
	"context"
	"crypto"
	"crypto/x509"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/trust"
)

// How events are gathered.
const (
	gather      = 20 * time.Millisecond  // after the first of a burst
	gatherMost  = 500 * time.Millisecond // where computing takes long: at most a third of a core goes into it
	retryStatus = 10 * time.Second       // when the status could not be written
)

// loop is the owner of what control decides. It looks at the present state of everything and puts in force what follows.
type loop struct {
	c          *Control
	neighbours *neighbours
	links      *linkTracker
	problems   ProblemLog

	started   time.Time
	settled   bool // what peers had said before the start was read again, or waited for in vain
	heard     heard
	frozen    frozen
	addresses allocation
	hosts     hostAllocation
	peers     []ClusterPeer // last set
	own       *federation.Own
	resources []*configv1.Resource    // last set
	bundles   map[string]toldResource // the trust bundles of those, by key
	status    *Status                 // last written
	statusDue bool                    // it could not be written
	busesSet  bool
	judged    struct { // what the config streams were judged by last
		objects *Objects
		roster  *roster
	}
}

// follow runs the loop until ctx ends.
func (l *loop) follow(ctx context.Context) error {
	defer l.neighbours.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		objects, views, domains := l.c.cfg.Registry.Objects().Changed(), l.c.member.Changed(), l.c.follower.Changed()
		began := time.Now()
		again := l.step(ctx)
		took := time.Since(began)
		l.c.metrics.computed.Observe(took.Seconds())
		if again > 0 {
			timer.Reset(again)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-objects:
		case <-views:
		case <-domains:
		case <-l.c.wake:
		case <-timer.C:
		}
		if !pause(ctx, min(max(gather, 2*took), gatherMost)) {
			return nil
		}
	}
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// step brings everything up to date. again is when to come back without being told; 0: need not.
func (l *loop) step(ctx context.Context) (again time.Duration) {
	c := l.c
	objects := c.cfg.Registry.Objects().Load()
	if objects == nil {
		return 0 // readiness says so; nothing is concluded from what was not read
	}
	now := c.cfg.Now()
	c.fleet.retain(objects.Workloads)
	fleet := c.fleet.state(c.directory.nodes)
	again = l.links.update(fleet.reports, now)
	peers, _ := acceptedPeers(c.self, objects.Peers) // build tells of the others
	l.setPeers(ctx, peers)
	domains, _ := acceptedDomains(c.self, objects.Peers, objects.Domains)
	c.follower.Set(followedDomains(domains))
	views := c.member.Views()
	complete, wait := l.settle(ctx, peers, views)
	if wait > 0 {
		return wait
	}
	pruned, prune, err := c.revoked.prune()
	switch {
	case err != nil:
		c.cfg.Log.ErrorContext(ctx, "revocations of what has ended stay", "error", err)
	case pruned:
		c.enforce()
	}
	c.acks.published(c.member.OwnBundle())
	acknowledged, later := l.acknowledged(objects.Workloads, now)
	var words []*federation.View
	words, l.frozen = l.frozen.apply(views.All())
	drills, drilled, lease := c.drills.present()
	again = earliest(again, lease)
	w := build(inputs{
		self: c.self, objects: objects, trust: c.ownBundle(), named: c.named(), revoked: c.revoked.load(), drains: c.drains.load(), drills: drills, drilled: drilled, acknowledged: acknowledged, views: words, domains: c.follower.States(),
		gateways: fleet.gateways, nodes: fleet.nodes, known: fleet.known,
		links: l.links.snapshot(), addresses: l.addresses, hosts: l.hosts, cidr: c.cfg.ClusterSetCIDR, complete: complete,
		pods: c.cfg.PodCIDRs, peerPods: c.cfg.PeerPodCIDRs,
	})
	if before := c.present.Load(); before != nil {
		c.timeline.observe(before.world, w)
	}
	c.drills.giveWay(c.cfg.Cluster, w.rivals)
	l.setAddresses(ctx, w.addresses, w.hosts)
	l.setOwn(ctx, &w.own)
	l.readmit(objects, fleet.roster)
	if err := c.leases.set(w.policing); err != nil {
		c.cfg.Log.ErrorContext(ctx, "shared quotas are not divided", "error", err) // the registry should have refused it
	}
	c.told.Replace(w.bundles())
	l.setResources(w.resources)
	c.acks.note(w.usable, w.in.self.Domain, w.in.trust.Authorities, c.nextRoot(), l.bundles)
	if now, _ := l.acknowledged(objects.Workloads, now); !maps.Equal(now, acknowledged) {
		later = gather // what nobody had to be told of is in force
	}
	l.setStatus(ctx, w, now)
	c.present.Store(&present{world: w, fleet: fleet, views: views, status: l.status, buses: l.neighbours.states()})
	c.cfg.Checks.Done(checkManifests)
	wrong := 0
	for i := range l.status.Problems {
		if !l.status.Problems[i].Note {
			wrong++
		}
	}
	c.metrics.observe(w, wrong)
	if l.statusDue {
		later = earliest(later, retryStatus)
	}
	return earliest(again, earliest(later, prune))
}

// toldResource is a resource and the revision that it came with.
type toldResource struct {
	resource *configv1.Resource
	revision uint64
}

// earliest returns the shorter of two pauses, of which 0 is none.
func earliest(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// acknowledged returns which bundles of peers are in force in all programs, and when to ask again. Right after the start nobody can tell: they
// are coming back. While somebody is away who may come back with an SVID that lives, what is acknowledged stays what it was.
func (l *loop) acknowledged(workloads []Workload, now time.Time) (sequences map[spiffeid.TrustDomain]uint64, later time.Duration) {
	if left := comingBack - now.Sub(l.c.started); left > 0 {
		return nil, left
	}
	if len(l.c.absent(workloads)) > 0 {
		return l.c.acks.reckoned(), comingBack
	}
	return l.c.acks.reckon(l.c.applied()), 0
}

// nextRoot returns the own next root, while it is published.
func (c *Control) nextRoot() *x509.Certificate {
	if r := c.authority.Rotation(); r.Phase == trust.RotationPublished {
		return r.Next
	}
	return nil
}

// setPeers tells who the peers are. It comes before everything else: a peer whose ClusterPeer was removed is gone from the views
// when it returns.
func (l *loop) setPeers(ctx context.Context, peers []ClusterPeer) {
	keys := make([]string, 0, len(peers))
	specs := make([]federation.PeerSpec, 0, len(peers))
	for _, p := range peers {
		fingerprint, err := federation.ParseFingerprint(p.RootFingerprint)
		if err != nil {
			l.c.cfg.Log.ErrorContext(ctx, "peer left out", "peer", p.Cluster.String(), "error", err) // the registry should have said so
			continue
		}
		keys = append(keys, p.BusKey)
		specs = append(specs, federation.PeerSpec{Cluster: p.Cluster, Domain: p.Domain, RootFingerprint: fingerprint})
	}
	if l.peers == nil || !slices.EqualFunc(l.peers, peers, samePins) {
		l.peers = slices.Clone(peers)
		if l.peers == nil {
			l.peers = []ClusterPeer{}
		}
		l.c.clients.Store(&keys)
		if err := l.c.member.SetPeers(specs); err != nil {
			l.c.cfg.Log.ErrorContext(ctx, "not all peers can be taken", "error", err)
		}
	}
	if buses, changed := l.neighbours.reconcile(ctx, peers); changed || !l.busesSet {
		l.busesSet = true
		l.c.member.SetBuses(buses)
	}
}

// samePins reports whether two ClusterPeers pin the same peer the same way; where they stand is of no matter.
func samePins(a, b ClusterPeer) bool {
	return a.Cluster == b.Cluster && a.Domain == b.Domain && a.RootFingerprint == b.RootFingerprint && a.BusKey == b.BusKey
}

// settle waits, after a start, for the words of peers who had spoken before. complete tells whether every peer has spoken.
func (l *loop) settle(ctx context.Context, peers []ClusterPeer, views *federation.Views) (complete bool, wait time.Duration) {
	next, awaited, all := l.heard.next(peers, views)
	if !l.settled && awaited {
		if left := recallGrace - time.Since(l.started); left > 0 {
			return false, min(left, 100*time.Millisecond)
		}
		l.c.cfg.Log.ErrorContext(ctx, "what some peers said before the start is lost; going on without it")
	}
	l.settled = true
	if !next.equal(l.heard) {
		l.heard = next
		if err := writeHeard(filepath.Join(l.c.cfg.StateDir, heardFile), next); err != nil {
			l.c.cfg.Log.ErrorContext(ctx, "state not written", "error", err)
		}
	}
	return all, 0
}

// setAddresses puts the imports' addresses on disk before anybody hears of them.
func (l *loop) setAddresses(ctx context.Context, next allocation, hosts hostAllocation) {
	if maps.Equal(l.addresses, next) && maps.Equal(l.hosts, hosts) {
		return
	}
	l.addresses, l.hosts = next, hosts
	if err := writeAllocation(filepath.Join(l.c.cfg.StateDir, addressesFile), next, hosts); err != nil {
		l.c.cfg.Log.ErrorContext(ctx, "state not written", "error", err)
	}
}

// setOwn tells the peers, if it is news.
func (l *loop) setOwn(ctx context.Context, own *federation.Own) {
	if l.own != nil && slices.EqualFunc(l.own.Roots, own.Roots, (*x509.Certificate).Equal) && maps.EqualFunc(l.own.JWTKeys, own.JWTKeys, sameKey) &&
		maps.Equal(l.own.Acknowledged, own.Acknowledged) && slices.Equal(l.own.Revoked, own.Revoked) &&
		maps.EqualFunc(l.own.RevokedIDs, own.RevokedIDs, time.Time.Equal) &&
		reflect.DeepEqual(l.own.Gateways, own.Gateways) && reflect.DeepEqual(l.own.Exports, own.Exports) &&
		slices.Equal(l.own.PodCIDRs, own.PodCIDRs) {
		return
	}
	l.own = own
	if err := l.c.member.SetOwn(*own); err != nil {
		l.c.cfg.Log.ErrorContext(ctx, "not everything can be told to the peers", "error", err)
	}
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// readmit has the config streams judged again, if who may exist has changed: whether or not that changes what anybody is told.
func (l *loop) readmit(objects *Objects, r *roster) {
	if objects == l.judged.objects && r == l.judged.roster {
		return
	}
	l.judged.objects, l.judged.roster = objects, r
	l.c.stream.Readmit()
}

// setResources tells the proxies, if it is news. resources are ordered by key.
func (l *loop) setResources(resources []*configv1.Resource) {
	same := slices.EqualFunc(l.resources, resources, func(a, b *configv1.Resource) bool { return proto.Equal(a, b) })
	if same && l.resources != nil {
		return
	}
	l.resources = resources
	revision := l.c.stream.Set(configstream.NewWorld(resources))
	told := make(map[string]toldResource)
	for _, r := range resources {
		if r.GetBundle() == nil {
			continue
		}
		told[r.GetKey()] = toldResource{r, revision}
		if before, ok := l.bundles[r.GetKey()]; ok && proto.Equal(before.resource, r) {
			told[r.GetKey()] = before // nobody is told again
		}
	}
	l.bundles = told
}

// setStatus writes back what became of the exports, if it is news.
func (l *loop) setStatus(ctx context.Context, w *world, now time.Time) {
	next := &Status{
		Exports: w.exports, Imports: w.imports, Peers: w.peerConditions(), Domains: w.domainConditions(), Policies: w.policyStatus, Failover: w.failover, Silent: w.silent,
		Problems: SortProblems(slices.Concat(w.in.objects.Problems, w.problems)),
	}
	l.problems.Report(ctx, w.problems) // the registry tells of its own
	stampStatus(next, l.status, now)
	if l.status != nil && !l.statusDue && reflect.DeepEqual(l.status, next) {
		return
	}
	l.status = next
	err := l.c.cfg.Registry.PutStatus(ctx, next)
	if err != nil && !l.statusDue {
		l.c.cfg.Log.ErrorContext(ctx, "status not written; trying again", "error", err)
	}
	l.statusDue = err != nil
}
