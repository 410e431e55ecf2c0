package federation

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// MemberConfig is what a Member is made from. Cluster, Domain and Keys are required.
type MemberConfig struct {
	Cluster topology.ClusterName
	Domain  spiffeid.TrustDomain
	Region  string // at most 63 bytes; may be empty
	Keys    *Keys
	// StateDir is the folder of high-water marks and last accepted records; made if it isn't there, and nobody else's.
	// Empty keeps nothing: a restart then forgets how far each peer had come.
	StateDir string
	// Freshness are the ages at which a peer's word becomes Stale, Frozen and Expired.
	Freshness Thresholds
	Now       func() time.Time // default time.Now; what records are judged by. Timers don't use it
	Log       *slog.Logger     // default: discard
	Metrics   prometheus.Registerer
}

// Own is what the own cluster tells its peers.
type Own struct {
	// Roots are the own trust domain's X.509 roots. Until there is one, nothing is published.
	Roots []*x509.Certificate
	// JWTKeys are the keys that sign its JWT-SVIDs, by key ID.
	JWTKeys map[string]crypto.PublicKey
	// Revoked are public keys (SHA-256 of the SubjectPublicKeyInfo) that must not be accepted any more; at most 1024.
	Revoked [][sha256.Size]byte
	// RevokedIDs are SPIFFE IDs of which what was issued up to that moment must not be accepted any more; with the zero time nothing at all.
	// At most 256, and 12 KiB of them.
	RevokedIDs map[spiffeid.ID]time.Time
	// Acknowledged says which bundle of each peer is in force in the own cluster, by its sequence.
	Acknowledged map[spiffeid.TrustDomain]uint64
	Gateways     []Gateway
	Exports      []Export
	// PodCIDRs hold the addresses of the cluster's pods, as far as they are known (CondensePodCIDRs). They are told beside gateways.
	PodCIDRs []netip.Prefix
}

// PeerSpec pins a peer, as a ClusterPeer does.
type PeerSpec struct {
	Cluster         topology.ClusterName
	Domain          spiffeid.TrustDomain
	RootFingerprint Fingerprint
}

// Member is a cluster's part in the federation. Its methods may be called at any time, by several goroutines, also before Run.
type Member struct {
	cfg     MemberConfig
	store   *store
	metrics *metrics
	views   *live.Value[*Views]
	wake    chan struct{} // holds one: something is to be reconciled
	started atomic.Bool

	published atomic.Pointer[ownBundle] // nil before the first Head

	mu     sync.Mutex
	wanted wanted                         // guarded by mu: what Set… asked for last
	shown  map[topology.ClusterName]*View // guarded by mu: what the loop has to show, before the filter by wanted.peers
}

// ownBundle is what peers were told of the own trust domain last.
type ownBundle struct {
	bundle   trust.Bundle
	sequence uint64
}

// OwnBundle returns the own trust domain's authorities as they were told to the peers last, and the sequence of that; 0: nothing was told
// since the start.
func (m *Member) OwnBundle() (trust.Bundle, uint64) {
	if b := m.published.Load(); b != nil {
		return b.bundle, b.sequence
	}
	return trust.Bundle{}, 0
}

// wanted is what the owner loop reconciles to. Its parts are replaced, never changed.
type wanted struct {
	own   *ownContent
	peers map[topology.ClusterName]PeerSpec
	buses map[string]Bus
}

// NewMember opens the state in cfg.StateDir.
func NewMember(cfg MemberConfig) (*Member, error) {
	switch {
	case cfg.Cluster.IsZero():
		return nil, errors.New("federation: member without a cluster name")
	case cfg.Domain.IsZero():
		return nil, errors.New("federation: member without a trust domain")
	case cfg.Keys == nil:
		return nil, errors.New("federation: member without keys")
	case len(cfg.Region) > maxRegion:
		return nil, fmt.Errorf("federation: region of %d bytes; the limit is %d", len(cfg.Region), maxRegion)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Freshness = cfg.Freshness.withDefaults()
	m := &Member{
		cfg:   cfg,
		views: live.NewValue(new(Views)),
		wake:  make(chan struct{}, 1),
	}
	var err error
	if m.store, err = openStore(cfg.StateDir, cfg.Log); err != nil {
		return nil, fmt.Errorf("federation: state in %s: %w", cfg.StateDir, err)
	}
	if m.metrics, err = newMetrics(cfg.Metrics, m.Views, cfg.Now); err != nil {
		return nil, fmt.Errorf("federation: metrics: %w", err)
	}
	return m, nil
}

// Views returns what the peers say now.
func (m *Member) Views() *Views { return m.views.Load() }

// Changed returns a channel that is closed when Views has changed. To miss nothing: take the channel, then Views, then wait.
func (m *Member) Changed() <-chan struct{} { return m.views.Changed() }

// SetOwn says what the own cluster tells its peers from now on; changes that come close together go out as one. What can't be
// told, because it breaks a limit, is left out and named in the error; the rest is in force.
func (m *Member) SetOwn(own Own) error {
	content, err := newOwnContent(m.cfg.Domain, own)
	m.mu.Lock()
	if content != nil {
		m.wanted.own = content
	}
	m.mu.Unlock()
	m.poke()
	if err != nil {
		return fmt.Errorf("federation: own records: %w", err)
	}
	return nil
}

// SetPeers says who the peers are from now on. When it returns, the Views of all others are gone. A peer that is pinned to
// another domain or key than before begins anew. Peers that can't be told apart from others (or from the own cluster) are left
// out and named in the error; the rest is in force.
func (m *Member) SetPeers(specs []PeerSpec) error {
	peers := make(map[topology.ClusterName]PeerSpec, len(specs))
	domains := map[spiffeid.TrustDomain]bool{m.cfg.Domain: true}
	roots := map[Fingerprint]bool{m.cfg.Keys.Fingerprint(): true}
	var left []error
	for _, s := range specs {
		_, twice := peers[s.Cluster]
		switch {
		case s.Cluster.IsZero() || s.Domain.IsZero() || s.RootFingerprint.IsZero():
			left = append(left, fmt.Errorf("federation: peer %q: a name, a trust domain and a root fingerprint are required", s.Cluster))
		case twice || s.Cluster == m.cfg.Cluster:
			left = append(left, fmt.Errorf("federation: peer %q: another cluster has that name", s.Cluster))
		case domains[s.Domain]:
			left = append(left, fmt.Errorf("federation: peer %q: another cluster has the trust domain %q", s.Cluster, s.Domain.Name()))
		case roots[s.RootFingerprint]:
			left = append(left, fmt.Errorf("federation: peer %q: another cluster has the root key %s", s.Cluster, s.RootFingerprint))
		default:
			peers[s.Cluster], domains[s.Domain], roots[s.RootFingerprint] = s, true, true
		}
	}
	m.mu.Lock()
	m.wanted.peers = peers
	m.showLocked()
	m.mu.Unlock()
	m.poke()
	return errors.Join(left...)
}

// SetBuses says on which buses the member speaks from now on, by name: its own server and those of its neighbours. It doesn't
// close those that it leaves: who opened them does.
func (m *Member) SetBuses(buses map[string]Bus) {
	m.mu.Lock()
	m.wanted.buses = maps.Clone(buses)
	m.mu.Unlock()
	m.poke()
}

// poke wakes the loop; it will read what is wanted.
func (m *Member) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *Member) want() wanted {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wanted
}

// show replaces what there is to show.
func (m *Member) show(shown map[topology.ClusterName]*View) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shown = shown
	m.showLocked()
}

// showLocked publishes the views of those that are pinned at this moment. The caller holds m.mu.
func (m *Member) showLocked() {
	ordered := make([]*View, 0, len(m.wanted.peers))
	for name, spec := range m.wanted.peers {
		v := m.shown[name]
		if v == nil || v.spec != spec {
			v = &View{Cluster: spec.Cluster, Domain: spec.Domain, Freshness: Waiting, Reason: "nothing has been heard yet", spec: spec}
		}
		ordered = append(ordered, v)
	}
	slices.SortFunc(ordered, func(a, b *View) int { return a.Cluster.Compare(b.Cluster) })
	if same := slices.EqualFunc(m.views.Load().ordered, ordered, (*View).same); !same {
		m.views.Store(&Views{ordered: ordered})
	}
}

// Run takes part until ctx ends, and returns nil then. It may be called once.
func (m *Member) Run(ctx context.Context) error {
	if m.started.Swap(true) {
		return errors.New("federation: member runs already")
	}
	defer m.metrics.unregister()
	return newLoop(m).run(ctx)
}
