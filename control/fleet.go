package control

import (
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// fleet is the own cluster's programs: who has joined, who is connected, and what gateways report. Safe for concurrent use.
type fleet struct {
	path   string
	domain spiffeid.TrustDomain
	now    func() time.Time
	log    *slog.Logger
	wake   func() // tells the owner loop that something changed; must not block
	// svidLifetime is how long an SVID lasts at most.
	svidLifetime time.Duration

	mu       sync.Mutex
	roster   *roster                   // guarded by mu; replaced, never changed
	sessions map[string]int            // guarded by mu: open config streams by receiver
	reports  map[string][]linkReport   // guarded by mu: by gateway
	versions map[string]programVersion // guarded by mu: what a program said of itself last, by receiver
	issued   map[string]time.Time      // guarded by mu: when the last SVID of a sidecar ends, by receiver
}

// programVersion is what a program said of itself last.
type programVersion struct {
	id      spiffeid.ID
	version string
	admin   string
	since   time.Time
	gone    time.Time // when it was last connected; zero: it is, or was not since the start
}

func openFleet(path string, domain spiffeid.TrustDomain, now func() time.Time, log *slog.Logger, wake func()) (*fleet, error) {
	r, err := readRoster(path)
	if err != nil {
		return nil, err
	}
	return &fleet{
		path: path, domain: domain, now: now, log: log, wake: wake, roster: r,
		sessions: make(map[string]int), reports: make(map[string][]linkReport), versions: make(map[string]programVersion),
		issued: make(map[string]time.Time),
	}, nil
}

// change replaces the roster by what edit makes of a copy, and puts it on disk. On an error nothing has changed.
func (f *fleet) change(edit func(*roster) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.roster.clone()
	if err := edit(next); err != nil {
		return err
	}
	if maps.Equal(next.Gateways, f.roster.Gateways) && maps.Equal(next.Nodes, f.roster.Nodes) {
		return nil
	}
	if err := writeRoster(f.path, next); err != nil {
		return err
	}
	f.roster = next
	f.wake()
	return nil
}

// joined notes that a program got an SVID that ends then.
func (f *fleet) joined(program, name string, svidEnds time.Time) error {
	f.noteIssued(program, name, svidEnds)
	return f.change(func(r *roster) error {
		switch program {
		case configstream.ProgramGateway:
			g, known := r.Gateways[name]
			if !known && len(r.Gateways) >= maxRosterGateways {
				return errRosterFull
			}
			g.SVIDEnds = svidEnds
			r.Gateways[name] = g
		case configstream.ProgramNode:
			n, known := r.Nodes[name]
			if !known && len(r.Nodes) >= maxRosterNodes {
				return errRosterFull
			}
			n.SVIDEnds = svidEnds
			r.Nodes[name] = n
		}
		return nil
	})
}

// remove takes a gateway or node proxy out of the roster and reports whether it was in. It gets no further SVID.
func (f *fleet) remove(program, name string) (bool, error) {
	was := false
	err := f.change(func(r *roster) error {
		switch program {
		case configstream.ProgramGateway:
			_, was = r.Gateways[name]
			delete(r.Gateways, name)
		case configstream.ProgramNode:
			_, was = r.Nodes[name]
			delete(r.Nodes, name)
		}
		return nil
	})
	return was, err
}

// knows reports whether a gateway or node proxy has joined.
func (f *fleet) knows(program, name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if program == configstream.ProgramGateway {
		_, ok := f.roster.Gateways[name]
		return ok
	}
	_, ok := f.roster.Nodes[name]
	return ok
}

// connect notes a program's hello: where it is now.
func (f *fleet) connect(s *configstream.Session) {
	program, name := cutProgram(s.Receiver)
	f.mu.Lock()
	f.sessions[s.Receiver]++
	f.versions[s.Receiver] = programVersion{id: s.ID, version: clip(s.Hello.GetVersion(), 64), admin: clip(s.Hello.GetAdminAddress(), 512), since: f.now()}
	f.mu.Unlock()
	err := f.change(func(r *roster) error {
		switch program {
		case configstream.ProgramGateway:
			if g, ok := r.Gateways[name]; ok {
				h := s.Hello.GetGateway()
				g.Address, g.QUIC, g.TCP = h.GetAddress(), h.GetQuicAddress(), h.GetTcpAddress()
				g.Zone, g.Draining = h.GetZone(), h.GetDraining()
				r.Gateways[name] = g
			}
		case configstream.ProgramNode:
			inbound, err := netip.ParseAddrPort(s.Hello.GetInboundAddress())
			if n, ok := r.Nodes[name]; ok && err == nil {
				n.Inbound = inbound
				r.Nodes[name] = n
			}
		}
		return nil
	})
	if err != nil {
		f.log.Error("roster not written", "receiver", s.Receiver, "error", err)
	}
	f.wake()
}

// disconnect notes that a stream has ended. Where the program was is kept: its silence is no word on whether it serves.
func (f *fleet) disconnect(s *configstream.Session) {
	f.mu.Lock()
	if f.sessions[s.Receiver]--; f.sessions[s.Receiver] <= 0 {
		delete(f.sessions, s.Receiver)
		if v, ok := f.versions[s.Receiver]; ok {
			v.gone = f.now()
			f.versions[s.Receiver] = v
		}
	}
	f.mu.Unlock()
	f.wake()
}

// svidEnds returns when what was issued to the programs that are not connected ends at the latest, by receiver, as far as it is known.
func (f *fleet) svidEnds() map[string]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]time.Time)
	for receiver, v := range f.versions {
		if !v.gone.IsZero() {
			out[receiver] = v.gone.Add(f.svidLifetime)
		}
	}
	for id, g := range f.roster.Gateways {
		out[configstream.ProgramGateway+"/"+id] = g.SVIDEnds
	}
	for name, n := range f.roster.Nodes {
		out[configstream.ProgramNode+"/"+name] = n.SVIDEnds
	}
	return out
}

// report notes what a gateway saw.
func (f *fleet) report(s *configstream.Session, r *configv1.Report) {
	program, name := cutProgram(s.Receiver)
	if program != configstream.ProgramGateway {
		return
	}
	reports := readReport(name, r, f.now())
	f.mu.Lock()
	f.reports[name] = reports
	f.mu.Unlock()
	f.wake()
	err := f.change(func(next *roster) error {
		if g, ok := next.Gateways[name]; ok {
			g.Draining = r.GetDraining()
			next.Gateways[name] = g
		}
		return nil
	})
	if err != nil {
		f.log.Error("roster not written", "receiver", s.Receiver, "error", err)
	}
}

// retain forgets what programs that no longer exist said of themselves. Gateways and node proxies are the roster's business.
func (f *fleet) retain(workloads []Workload) {
	exist := make(map[string]struct{}, len(workloads))
	for i := range workloads {
		exist[configstream.ProgramSidecar+"/"+workloads[i].ID()] = struct{}{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.versions, func(receiver string, _ programVersion) bool {
		if program, name := cutProgram(receiver); program != configstream.ProgramSidecar {
			_, gateway := f.roster.Gateways[name]
			_, node := f.roster.Nodes[name]
			return !gateway && !node
		}
		_, stays := exist[receiver]
		return !stays
	})
	maps.DeleteFunc(f.issued, func(receiver string, _ time.Time) bool { _, stays := exist[receiver]; return !stays })
	maps.DeleteFunc(f.reports, func(gateway string, _ []linkReport) bool { _, stays := f.roster.Gateways[gateway]; return !stays })
}

// programs returns every program that has joined, or has been connected since control started, by receiver, with what it said of
// itself last: nothing yet, for some.
func (f *fleet) programs() map[string]programVersion {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := maps.Clone(f.versions)
	for id := range f.roster.Gateways {
		if _, said := out[configstream.ProgramGateway+"/"+id]; !said {
			out[configstream.ProgramGateway+"/"+id] = programVersion{}
		}
	}
	for name := range f.roster.Nodes {
		if _, said := out[configstream.ProgramNode+"/"+name]; !said {
			out[configstream.ProgramNode+"/"+name] = programVersion{}
		}
	}
	return out
}

// fleetState is the fleet at one moment.
type fleetState struct {
	gateways  []topology.Gateway // that can be reached, ordered by ID
	nodes     []node             // likewise, by name
	known     []string           // node proxies that may join, or have; ordered
	reports   []linkReport       // ordered
	connected map[string]bool    // receivers
	roster    *roster            // as it was then; not to be changed
}

// state returns the fleet of now, after dropping who ended long ago. Of the node proxies, those that may stand in.
func (f *fleet) state(allowed nodeNames) fleetState {
	now := f.now()
	f.mu.Lock()
	connected := make(map[string]bool, len(f.sessions))
	gateways := make(map[string]bool)
	for receiver := range f.sessions {
		connected[receiver] = true
		if program, name := cutProgram(receiver); program == configstream.ProgramGateway {
			gateways[name] = true
		}
	}
	r := f.roster
	pruned := r.pruned(connected, gateways, allowed, now)
	out := fleetState{connected: connected, roster: r}
	for gateway, reports := range f.reports {
		for _, l := range reports {
			l.connected = gateways[gateway]
			if _, known := pruned.Gateways[gateway]; known {
				out.reports = append(out.reports, l)
			}
		}
	}
	f.mu.Unlock()
	if len(pruned.Gateways) != len(r.Gateways) || len(pruned.Nodes) != len(r.Nodes) {
		f.prune(pruned)
	}
	sortReports(out.reports)
	for _, id := range slices.Sorted(maps.Keys(pruned.Gateways)) {
		g := pruned.Gateways[id]
		identity, err := trust.GatewayID(f.domain, id)
		if err != nil || g.Address == "" && g.QUIC == "" {
			continue // has not said yet where it is
		}
		out.gateways = append(out.gateways, topology.Gateway{
			ID: id, Address: g.Address, QUIC: g.QUIC, TCP: g.TCP, Identity: identity, Zone: g.Zone, Draining: g.Draining,
		})
	}
	out.known = slices.Clone(allowed.listed)
	for _, name := range slices.Sorted(maps.Keys(pruned.Nodes)) {
		if allowed.may(name) && !slices.Contains(out.known, name) {
			out.known = append(out.known, name)
		}
		server, err := trust.NodeID(f.domain, name)
		if n := pruned.Nodes[name]; err == nil && n.Inbound.IsValid() && allowed.may(name) {
			out.nodes = append(out.nodes, node{name: name, inbound: n.Inbound, server: server})
		}
	}
	return out
}

func (f *fleet) prune(to *roster) {
	err := f.change(func(r *roster) error {
		for id := range r.Gateways {
			if _, stays := to.Gateways[id]; !stays {
				f.log.Info("gateway forgotten, its SVID ended long ago", "gateway", id)
			}
		}
		maps.DeleteFunc(r.Gateways, func(id string, _ rosterGateway) bool { _, stays := to.Gateways[id]; return !stays })
		maps.DeleteFunc(r.Nodes, func(name string, _ rosterNode) bool { _, stays := to.Nodes[name]; return !stays })
		return nil
	})
	if err != nil {
		f.log.Error("roster not written", "error", err)
	}
}

// isHostPort reports whether s is host:port with a port number, as others will dial it: a name, or an address that isDialable. What a name
// stands for is the resolver's word.
func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return false
	}
	a, err := netip.ParseAddr(host)
	if err == nil {
		return isDialable(a)
	}
	// Resolvers take "2852039166" and "0xa9.0xfe.43518" for addresses (inet_aton), too: no name's last label is a number.
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	last := labels[len(labels)-1]
	_, err = strconv.ParseUint(last, 0, 64)
	return err != nil && last != "" && !strings.Contains(host, ":")
}

// isDialable reports whether a program can be at a: not where every host finds something of its own (link-local, where clouds have their
// metadata; unspecified), nor many hosts at once. Loopback is for several clusters on one machine.
func isDialable(a netip.Addr) bool {
	a = a.Unmap()
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a != broadcast
}
