package gateway

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestNamed(t *testing.T) {
	addr := netip.MustParseAddr
	at := func(id, address string, standIn bool) topology.Endpoint {
		return topology.Endpoint{ID: id, Address: netip.AddrPortFrom(addr(address), 15008), Ports: []uint16{80}, Ready: true, StandIn: standIn}
	}
	e := &topology.Export{
		Name: serviceName("db.shop"), Ports: []uint16{80},
		Endpoints: []topology.Endpoint{at("db-0", "10.2.0.1", false), at("db-1", "10.2.0.2", false), at("node/a", "192.0.2.1", true), at("node/b", "192.0.2.2", true)},
		Hosts:     []netip.Addr{addr("10.2.0.1"), addr("10.2.0.9"), addr("192.0.2.1")},
	}
	for host, want := range map[string]string{
		"10.2.0.1":  "db-0",          // it has a sidecar
		"10.2.0.9":  "node/a node/b", // it has none
		"192.0.2.1": "node/a node/b", // a copy that has its machine's address: the node proxy there is not its sidecar
		"10.2.0.2":  "",              // not to be named
		"10.2.0.3":  "",
	} {
		var got []string
		for _, ep := range named(e, 80, false, addr(host)) {
			got = append(got, ep.ID)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", host, got, want)
		}
	}
	if got := named(e, 81, false, addr("10.2.0.1")); len(got) > 0 {
		t.Errorf("on a port that it does not serve: %v", got)
	}
	e.Endpoints[0].Ready = false
	for _, ep := range named(e, 80, false, addr("10.2.0.1")) {
		if !ep.StandIn {
			t.Errorf("one that is not ready: %v", ep.ID)
		}
	}
}

// TestStreamToOneCopy: the one that the caller names, each time, or none.
func TestStreamToOneCopy(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, us := twoClusters(w, 1)
		says := func(word string) func(net.Conn) {
			return func(c net.Conn) { _, _ = io.WriteString(c, word); _ = c.Close() }
		}
		db := us[0].c.export("db.shop", nil, says("zero"), says("one"), says("two"))
		for i := range 2 {
			db.Hosts = append(db.Hosts, db.Endpoints[i].Address.Addr())
		}
		w.publish()
		ask := func(host netip.Addr) (string, error) {
			c := eu.dial()
			defer func() { _ = c.Close() }()
			p := preamble.Preamble{Cluster: clusterName("us"), Service: db.Name, Port: 80, Host: host}
			if _, err := c.Write(p.Append(nil)); err != nil {
				return "", err
			}
			if _, err := preamble.ReadReply(c); err != nil {
				return "", err
			}
			said, err := io.ReadAll(c)
			return string(said), err
		}
		for range 4 {
			for i, want := range []string{"zero", "one"} {
				if got, err := ask(db.Hosts[i]); got != want || err != nil {
					t.Errorf("%s: %q, %v, want %q", db.Hosts[i], got, err, want)
				}
			}
		}
		_, err := ask(db.Endpoints[2].Address.Addr())
		if r, ok := errors.AsType[*preamble.Refusal](err); !ok || r.Code != streamv1.Code_CODE_NO_ENDPOINT {
			t.Errorf("one that is not to be named: %v", err)
		}
	})
}
