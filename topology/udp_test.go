package topology_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/isthmus-mesh/isthmus/topology"
)

// One number is two ports: who asks for the one must not be sent to a copy that only has the other.
func TestChooseByTransport(t *testing.T) {
	dns := &topology.Service{
		Name: name(t, "dns.shop"), Imported: true, Exported: true,
		Ports: []topology.Port{{Name: "tcp", Number: 53, Protocol: topology.TCP}, {Name: "udp", Number: 53, Protocol: topology.UDP}, {Number: 80, Protocol: topology.TCP}},
		Endpoints: []topology.Endpoint{
			{ID: "both", Ports: []uint16{53}, UDPPorts: []uint16{53}, Ready: true},
			{ID: "stream", Ports: []uint16{53, 80}, Ready: true},
			{ID: "datagrams", UDPPorts: []uint16{53}, Ready: true},
		},
		Remotes: []topology.Remote{
			{Cluster: cluster(t, "us"), Ports: []uint16{53}, Ready: 1},
			{Cluster: cluster(t, "ap"), UDPPorts: []uint16{53}, Ready: 1},
		},
	}
	s := topology.NewSnapshot(topology.SnapshotSpec{
		Self:     topology.Self{Cluster: cluster(t, "eu"), Locality: topology.Locality{Region: "europe"}},
		Services: []*topology.Service{dns},
	})
	got := func(datagrams bool) (out []string, protocol topology.Protocol) {
		plan, err := topology.Choose(s, topology.Query{Service: dns.Name, Port: 53, Datagrams: datagrams}, topology.Load{})
		if err != nil {
			t.Fatal(err)
		}
		for _, tier := range plan.Tiers {
			for _, c := range tier.Candidates {
				if c.Target.Datagrams != datagrams {
					t.Errorf("target %+v: asked for datagrams: %t", c.Target, datagrams)
				}
				out = append(out, c.Cluster.String()+"/"+c.Target.Endpoint)
			}
		}
		return out, plan.Port.Protocol
	}
	for datagrams, want := range map[bool]string{false: "[eu/both eu/stream us/] tcp", true: "[eu/both eu/datagrams ap/] udp"} {
		copies, protocol := got(datagrams)
		if have := fmt.Sprint(copies) + " " + string(protocol); have != want {
			t.Errorf("datagrams %t: %s, want %s", datagrams, have, want)
		}
	}
	if _, err := topology.Choose(s, topology.Query{Service: dns.Name, Port: 80, Datagrams: true}, topology.Load{}); !errors.Is(err, topology.ErrUnknownPort) {
		t.Errorf("datagrams to a port that is TCP's alone: %v, want %v", err, topology.ErrUnknownPort)
	}
	if p, ok := dns.Port(53); !ok || p.Protocol != topology.TCP {
		t.Errorf("Port(53) = %+v, %t: want that of TCP", p, ok)
	}
}
