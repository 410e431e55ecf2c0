package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
)

// maxRoster bounds who may join: far more than a cluster has.
const (
	maxRosterGateways = 64 // what a GatewaySet holds (federation)
	maxRosterNodes    = 1000
	maxRosterFile     = 4 << 20
)

// forgetAfter is how long after the end of its SVID a gateway, or a node proxy that no configuration lists, is kept when it isn't heard of. It can't serve any more from that end on.
const forgetAfter = 24 * time.Hour

var errRosterFull = errors.New("the roster is full")

// roster is who has joined. Immutable; on disk, so that a control plane that starts again does not publish an empty set of gateways
// before they have all come back.
type roster struct {
	Gateways map[string]rosterGateway `json:"gateways"` // by id
	Nodes    map[string]rosterNode    `json:"nodes"`    // by name
}

type rosterGateway struct {
	Address  string    `json:"address,omitempty"` // host:port (TCP) for sidecars; empty until it has said hello
	QUIC     string    `json:"quic,omitempty"`    // host:port (UDP) for other clusters' gateways
	TCP      string    `json:"tcp,omitempty"`     // host:port (TCP) for them; empty: they can't
	Zone     string    `json:"zone,omitempty"`
	Draining bool      `json:"draining,omitempty"`
	SVIDEnds time.Time `json:"svid_ends"`
}

type rosterNode struct {
	Inbound  netip.AddrPort `json:"inbound,omitzero"` // zero until it has said hello
	SVIDEnds time.Time      `json:"svid_ends"`
}

// clone returns a copy that may be changed.
func (r *roster) clone() *roster {
	out := &roster{Gateways: maps.Clone(r.Gateways), Nodes: maps.Clone(r.Nodes)}
	if out.Gateways == nil {
		out.Gateways = make(map[string]rosterGateway)
	}
	if out.Nodes == nil {
		out.Nodes = make(map[string]rosterNode)
	}
	return out
}

// pruned returns r without those that ended long ago and aren't there. While no gateway at all is connected it is r: that nobody
// speaks says more about control than about them, and an empty set would tell the peers that there is no way in.
func (r *roster) pruned(receivers, gateways map[string]bool, nodes nodeNames, now time.Time) *roster {
	out := r.clone()
	if len(gateways) == 0 {
		return out
	}
	maps.DeleteFunc(out.Gateways, func(id string, g rosterGateway) bool {
		return !gateways[id] && now.Sub(g.SVIDEnds) > forgetAfter
	})
	maps.DeleteFunc(out.Nodes, func(name string, n rosterNode) bool {
		return !slices.Contains(nodes.listed, name) && !receivers[configstream.ProgramNode+"/"+name] && now.Sub(n.SVIDEnds) > forgetAfter
	})
	return out
}

func readRoster(path string) (*roster, error) {
	data, err := atomicfile.Read(path, maxRosterFile)
	if errors.Is(err, fs.ErrNotExist) {
		return new(roster).clone(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("control: roster: %w", err)
	}
	r := new(roster)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("control: roster: %s: %w", path, err)
	}
	return r.clone(), nil
}

func writeRoster(path string, r *roster) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("control: roster: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("control: roster: %w", err)
	}
	return nil
}

// cutProgram splits a receiver's name, "gateway/gateway-0", into program and name.
func cutProgram(receiver string) (program, name string) {
	program, name, _ = strings.Cut(receiver, "/")
	return program, name
}
