package topology_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/isthmus-mesh/isthmus/topology"
)

// A copy of a headless service of cluster us: two hosts, one of them at an address that stands for its own.
func headless(t *testing.T, change func(*topology.Service)) *topology.Snapshot {
	t.Helper()
	us, eu := cluster(t, "us"), cluster(t, "eu")
	ports := []topology.HostPort{
		{Name: "sql", Number: 5432, Target: 15432, Protocol: "tcp"}, {Name: "dns", Number: 53, Target: 9, Protocol: "udp"}, {Name: "web", Number: 80, Target: 80, Protocol: "tcp"},
	}
	s := &topology.Service{
		Name: name(t, "db.shop"), Ports: []topology.Port{{Name: "sql", Number: 5432, Protocol: topology.TCP}, {Number: 80, Protocol: topology.HTTP}},
		Imported: true, Headless: true,
		Remotes: []topology.Remote{{Cluster: us, Ports: []uint16{5432, 80}, Ready: 2}, {Cluster: cluster(t, "ap"), Ports: []uint16{5432}, Ready: 1}},
		Hosts: []topology.HostGroup{
			{Cluster: eu, Ports: ports, Hosts: []topology.Host{{Name: "db-0", Address: netip.MustParseAddr("10.1.0.1"), IPs: addresses("10.1.0.1")}}},
			{Cluster: us, Ports: ports, Hosts: []topology.Host{
				{Name: "db-0", Address: netip.MustParseAddr("10.2.0.1"), IPs: addresses("10.2.0.1")},
				{Name: "db-1", Address: netip.MustParseAddr("10.1.0.1"), IPs: addresses("241.0.0.9")},
			}},
		},
	}
	if change != nil {
		change(s)
	}
	other := &topology.Service{Name: name(t, "web.shop"), ClusterIPs: addresses("10.2.0.7")}
	return topology.NewSnapshot(topology.SnapshotSpec{Self: topology.Self{Cluster: eu}, Services: []*topology.Service{s, other}})
}

func addresses(in ...string) (out []netip.Addr) {
	for _, s := range in {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestAtHost(t *testing.T) {
	s := headless(t, func(s *topology.Service) { // says that a copy has the cluster IP of another service: it has not
		s.Hosts[1].Hosts = append(s.Hosts[1].Hosts, topology.Host{Name: "thief", Address: netip.MustParseAddr("10.2.0.7"), IPs: addresses("10.2.0.7")})
	})
	us := cluster(t, "us")
	for address, want := range map[string]topology.HostRef{
		"10.2.0.1":  {Cluster: us, Address: netip.MustParseAddr("10.2.0.1")},
		"241.0.0.9": {Cluster: us, Address: netip.MustParseAddr("10.1.0.1")},
	} {
		place, ok := s.At(netip.MustParseAddr(address))
		if !ok {
			t.Errorf("%s is nobody's", address)
			continue
		}
		for port, number := range map[uint16]uint16{15432: 5432, 5432: 5432, 80: 80, 9: 9} {
			if q := place.Query(port); q.Host != want || q.Service != name(t, "db.shop") || q.Port != number || q.Scope != topology.ClusterSet {
				t.Errorf("%s:%d is %+v", address, port, q)
			}
		}
	}
	if _, ok := s.At(netip.MustParseAddr("10.1.0.1")); ok {
		t.Error("a pod of the own cluster is taken for a copy elsewhere")
	}
	if place, _ := s.At(netip.MustParseAddr("10.2.0.7")); place.Service.Name != name(t, "web.shop") {
		t.Errorf("a cluster IP is %s's", place.Service.Name)
	}
}

func TestChooseHost(t *testing.T) {
	ref := topology.HostRef{Cluster: cluster(t, "us"), Address: netip.MustParseAddr("10.2.0.1")}
	q := topology.Query{Service: name(t, "db.shop"), Port: 5432, Host: ref}
	s := headless(t, func(s *topology.Service) {
		s.Policy = &topology.Policy{Tiers: []topology.Tier{{Match: topology.Selector{Cluster: "ap"}}}} // orders nothing where one was named
	})
	plan, err := topology.Choose(s, q, topology.Load{})
	if err != nil || len(plan.Tiers) != 1 || len(plan.Tiers[0].Candidates) != 1 {
		t.Fatalf("%+v, %v", plan, err)
	}
	c := plan.Tiers[0].Candidates[0]
	if c.Host != ref.Address || c.Cluster != ref.Cluster || c.Remote == nil || c.Target.Endpoint != "10.2.0.1" || c.Share != 1 {
		t.Errorf("candidate %+v", c)
	}
	// Suspected is not lost: there is no other.
	plan, err = topology.Choose(s, q, topology.Load{Suspected: map[topology.Target]string{c.Target: "3 resets"}})
	if err != nil || len(plan.Tiers) != 1 || !plan.Tiers[0].LastResort {
		t.Errorf("suspected: %+v, %v", plan, err)
	}
	for title, bad := range map[string]struct {
		change func(*topology.Service)
		query  topology.Query
		want   error
	}{
		"a copy that is gone": {func(s *topology.Service) { s.Hosts = nil }, q, topology.ErrNoCandidates},
		"never there": {
			func(s *topology.Service) { s.Policy = &topology.Policy{Never: []topology.Selector{{Cluster: "us"}}} }, q, topology.ErrNoCandidates,
		},
		"a cluster that exports it no more": {func(s *topology.Service) { s.Remotes = s.Remotes[1:] }, q, topology.ErrNoCandidates},
		"a port that it does not serve": {
			func(s *topology.Service) { s.Remotes[0].Ports = []uint16{80} }, q, topology.ErrNoCandidates,
		},
		"no such port": {nil, topology.Query{Service: q.Service, Port: 1, Host: ref}, topology.ErrUnknownPort},
		"of another cluster": {
			nil, topology.Query{Service: q.Service, Port: 5432, Host: topology.HostRef{Cluster: cluster(t, "ap"), Address: ref.Address}}, topology.ErrNoCandidates,
		},
	} {
		if plan, err := topology.Choose(headless(t, bad.change), bad.query, topology.Load{}); !errors.Is(err, bad.want) || len(plan.Tiers) > 0 {
			t.Errorf("%s: %+v, %v", title, plan, err)
		}
	}
}
