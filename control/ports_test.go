package control_test

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// The ports that other clusters have never make a service one that programs would refuse: the own ones stay, and of the others as many as there is room for.
func TestPortsBounded(t *testing.T) {
	var own []topology.Port
	for i := range 100 {
		own = append(own, topology.Port{Number: uint16(1000 + i), Protocol: topology.TCP}, topology.Port{Number: uint16(1000 + i), Protocol: topology.UDP})
	}
	var imported []federation.ImportPort
	for i := range 200 {
		for _, transport := range []federation.Transport{federation.TCP, federation.UDP, federation.SCTP} {
			imported = append(imported, federation.ImportPort{Port: federation.Port{Number: uint16(1 + i), Transport: transport}})
		}
	}
	ports, others := control.JoinPorts(own, imported)
	count := map[bool]int{true: len(others)}
	for _, p := range ports {
		count[p.Protocol == topology.UDP]++
	}
	for _, p := range own {
		if p.Protocol == topology.TCP && !hasPort(ports, p) {
			t.Errorf("own port %d is gone", p.Number)
		}
	}
	if count[false] != configstream.MaxPorts || count[true] != configstream.MaxPorts {
		t.Errorf("%d ports for TCP, %d others", count[false], count[true])
	}
}

func hasPort(all []topology.Port, p topology.Port) bool {
	for _, o := range all {
		if o.Number == p.Number && o.Protocol == p.Protocol {
			return true
		}
	}
	return false
}
