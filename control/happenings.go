package control

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// observe notes what of a world is not what it was before, as far as it bears on where calls go.
func (t *timeline) observe(before, now *world) {
	for _, c := range slices.SortedFunc(maps.Keys(now.in.links), topology.ClusterName.Compare) {
		was, is := before.in.links[c].state, now.in.links[c].state
		if was != is && is != topology.LinkUnknown && (was != topology.LinkUnknown || is == topology.LinkDown) {
			t.saw(ofCluster(c.String()), admin.EventLink, topology.ServiceName{}, fmt.Sprintf("the link to %s is %s", c, is))
		}
	}
	known := make(map[topology.ServiceName]*topology.Service, len(before.callable))
	for _, s := range before.callable {
		known[s.Name] = s
	}
	for _, s := range now.callable {
		if was := known[s.Name]; was != nil && was != s {
			t.compare(before, now, was, s)
		}
	}
}

// noteLimit notes that a called program has more to do than it can, and takes so many requests at a time; or all, again.
func (c *Control) noteLimit(receiver string, service topology.ServiceName, limit int) {
	what := fmt.Sprintf("%s in %s takes all requests again", receiver, c.cfg.Cluster)
	if limit > 0 {
		what = fmt.Sprintf("%s in %s has more to do than it can: it takes %d requests at a time, and the rest goes elsewhere", receiver, c.cfg.Cluster, limit)
	}
	c.timeline.saw(receiver, admin.EventCapacity, service, what)
}

// compare notes what of one service is not what it was.
func (t *timeline) compare(before, now *world, was, is *topology.Service) {
	if !reflect.DeepEqual(was.Policy, is.Policy) {
		detail := "no failover policy is in force"
		switch {
		case is.Policy != nil && was.Policy != nil && is.Policy.Name == was.Policy.Name:
			detail = "failover policy " + is.Policy.Name + " says something else"
		case is.Policy != nil:
			detail = "failover policy " + is.Policy.Name + " is in force"
		}
		t.tell(admin.EventPolicy, is.Name, detail)
	}
	own := now.in.self.Cluster.String()
	if a, b := before.services[is.Name], now.services[is.Name]; a != nil && b != nil {
		t.capacity(is.Name, own, a.ready(), b.ready())
	}
	remotes := make(map[topology.ClusterName]*topology.Remote, len(was.Remotes))
	for i := range was.Remotes {
		remotes[was.Remotes[i].Cluster] = &was.Remotes[i]
	}
	for i := range is.Remotes {
		r := &is.Remotes[i]
		old := remotes[r.Cluster]
		delete(remotes, r.Cluster)
		if old == nil {
			t.saw(ofCluster(r.Cluster.String()), admin.EventCapacity, is.Name, fmt.Sprintf("%s offers it, with %d ready copies", r.Cluster, r.Ready))
			old = &topology.Remote{Ready: r.Ready}
		}
		t.capacity(is.Name, r.Cluster.String(), old.Ready, r.Ready)
		switch {
		case r.Drain != nil && old.Drain == nil:
			t.saw(ofCluster(r.Cluster.String()), admin.EventDrain, is.Name, fmt.Sprintf("%s is drained, over %s: its owner's word", r.Cluster, r.Drain.Over))
		case r.Drain == nil && old.Drain != nil:
			t.saw(ofCluster(r.Cluster.String()), admin.EventUndrain, is.Name, fmt.Sprintf("%s is in use again: its owner's word", r.Cluster))
		}
	}
	for _, c := range slices.SortedFunc(maps.Keys(remotes), topology.ClusterName.Compare) {
		t.saw(ofCluster(c.String()), admin.EventCapacity, is.Name, fmt.Sprintf("%s offers it no more", c))
	}
}

// ofCluster is by whom what is of a cluster's own doing counts. The own cluster's copies that come and go are no operator's word either.
func ofCluster(name string) string { return "cluster/" + name }

func (t *timeline) capacity(name topology.ServiceName, cluster string, was, is int) {
	switch {
	case was > 0 && is == 0:
		t.saw(ofCluster(cluster), admin.EventCapacity, name, cluster+" has no ready copies")
	case was == 0 && is > 0:
		t.saw(ofCluster(cluster), admin.EventCapacity, name, fmt.Sprintf("%s has %d ready copies again", cluster, is))
	}
}
