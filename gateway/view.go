package gateway

import (
	"errors"
	"fmt"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// view is a snapshot with what is looked up in it for each stream.
type view struct {
	snapshot *topology.Snapshot
	hop      string // this gateway, as a path names it
	// peers by what their gateways can prove: the identity of a gateway that the configuration names. The domain says enough as long as no
	// gateway of its cluster is named, and it is that cluster's alone: who comes first would otherwise have to wait for its name to get
	// here. A gateway that is not named yet dials again, and is let in once it is.
	byGateway map[spiffeid.ID]topology.ClusterName
	byDomain  map[spiffeid.TrustDomain]topology.ClusterName

	mu         sync.Mutex
	capacities map[topology.ClusterName]map[topology.ServiceName]uint32 // guarded by mu; filled as asked for
}

func newView(s *topology.Snapshot, id string) *view {
	v := &view{
		snapshot:  s,
		hop:       s.Self().Cluster.String() + "/" + id,
		byGateway: make(map[spiffeid.ID]topology.ClusterName),
		byDomain:  make(map[spiffeid.TrustDomain]topology.ClusterName),
	}
	named := map[spiffeid.TrustDomain]bool{s.Self().Domain: true} // or shared: not in byDomain
	for _, c := range s.Clusters() {
		for _, g := range c.Gateways {
			if g.Identity.MemberOf(c.Domain) {
				v.byGateway[g.Identity] = c.Name
			}
		}
		if _, shared := v.byDomain[c.Domain]; shared || len(c.Gateways) > 0 {
			named[c.Domain] = true
		}
		v.byDomain[c.Domain] = c.Name
	}
	for td := range named {
		delete(v.byDomain, td)
	}
	return v
}

// name returns the own cluster's name; empty before the first snapshot.
func (v *view) name() string {
	if v == nil {
		return ""
	}
	return v.snapshot.Self().Cluster.String()
}

// capacity returns the ready copies of each service that is exported to the named cluster. Not to be changed. Worked out once for
// all connections of that cluster.
func (v *view) capacity(to topology.ClusterName) map[topology.ServiceName]uint32 {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, ok := v.capacities[to]
	if !ok {
		c = make(map[topology.ServiceName]uint32)
		if !to.IsZero() {
			c = capacityOf(v.snapshot, to)
		}
		if v.capacities == nil {
			v.capacities = make(map[topology.ClusterName]map[topology.ServiceName]uint32)
		}
		v.capacities[to] = c
	}
	return c
}

var (
	errNoSnapshot = errors.New("no configuration yet")
	errNotGateway = errors.New("want a gateway of a peer cluster")
)

// peer returns the peer cluster that the gateway id belongs to.
func (v *view) peer(id spiffeid.ID) (topology.ClusterName, bool) {
	if c, ok := v.byGateway[id]; ok {
		return c, true
	}
	c, ok := v.byDomain[id.TrustDomain()]
	return c, ok
}

// view returns the present snapshot's view; nil before the first.
func (g *Gateway) view() *view {
	s := g.cfg.Snapshots.Load()
	if s == nil {
		return nil
	}
	if v := g.lastView.Load(); v != nil && v.snapshot == s {
		return v
	}
	v := newView(s, g.cfg.ID)
	g.lastView.Store(v)
	return v
}

// allowPeer is the policy for who may link to us: a gateway that is one of a peer's at this moment.
func (g *Gateway) allowPeer(p trust.Peer) error {
	v := g.view()
	if v == nil {
		return errNoSnapshot
	}
	if _, ok := trust.ParseGateway(p.ID); !ok {
		return errNotGateway
	}
	if _, ok := v.peer(p.ID); !ok {
		return fmt.Errorf("%w: the configuration names no %s", errNotGateway, p.ID)
	}
	return nil
}

// allowCaller is the policy for who may open streams here: a workload or a node proxy of the own trust domain.
func (g *Gateway) allowCaller(p trust.Peer) error {
	own, err := g.cfg.Identity.SVID()
	if err != nil {
		return err
	}
	if !p.ID.MemberOf(own.ID.TrustDomain()) {
		return fmt.Errorf("want a member of %s", own.ID.TrustDomain())
	}
	if _, _, ok := trust.ParseWorkload(p.ID); ok {
		return nil
	}
	if _, ok := trust.ParseNode(p.ID); ok {
		return nil
	}
	return errors.New("want a workload or a node proxy")
}

// allowGateway is the policy for whom we link to: exactly this gateway.
func allowGateway(c topology.ClusterName, domain spiffeid.TrustDomain, gw topology.Gateway) trust.Policy {
	inDomain := trust.AllowGateways(domain)
	return func(p trust.Peer) error {
		if err := inDomain(p); err != nil {
			return err
		}
		if p.ID != gw.Identity {
			return fmt.Errorf("want %s of cluster %s", gw.Identity, c)
		}
		return nil
	}
}
