package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// absence says why there is no Service for an export: it is not declared, or what is declared is not understood.
func (w *world) absence(e *ServiceExport) string {
	name := Meta{Kind: "Service", Namespace: e.Namespace, Name: e.Name}.Object()
	for _, p := range w.in.objects.Problems {
		if p.Object == name {
			return fmt.Sprintf("%s is not in force: %s", name, p.Reason)
		}
	}
	return fmt.Sprintf("there is no %s", name)
}

// exportConditions says of each ServiceExport what became of it.
func (w *world) exportConditions(valid map[topology.ServiceName]*ServiceExport, merged federation.Merged) {
	for i := range w.in.objects.Exports {
		e := &w.in.objects.Exports[i]
		status := ExportStatus{Export: *e}
		switch r := w.services[e.Service]; {
		case r == nil:
			reason := w.absence(e)
			status.Conditions = []Condition{
				{Type: conditionValid, Status: False, Reason: reasonNoService, Message: reason},
				{Type: conditionReady, Status: False, Reason: reasonPending, Message: reason},
			}
		case valid[e.Service] == nil:
			const reason = "a Service of type ExternalName can't be exported"
			status.Conditions = []Condition{
				{Type: conditionValid, Status: False, Reason: reasonInvalidServiceType, Message: reason},
				{Type: conditionReady, Status: False, Reason: reasonFailed, Message: reason},
			}
		default:
			status.Conditions = []Condition{
				{Type: conditionValid, Status: True, Reason: reasonValid},
				w.exportReady(r),
			}
			for _, c := range merged.Conditions[e.Service][w.in.self.Cluster] {
				status.Conditions = append(status.Conditions, conditionOf(c))
			}
		}
		w.exports = append(w.exports, status)
	}
	slices.SortFunc(w.exports, func(a, b ExportStatus) int { return a.Export.Service.Compare(b.Export.Service) })
}

// exportReady says whether other clusters can reach the export.
func (w *world) exportReady(r *resolved) Condition {
	pending := func(message string) Condition {
		return Condition{Type: conditionReady, Status: False, Reason: reasonPending, Message: message}
	}
	switch {
	case len(w.own.Gateways) == 0:
		return pending("no gateway has joined: other clusters can't reach this one")
	case r.stranded > 0 && r.stranded == r.copies:
		return pending("its copies have no sidecar, and no node proxy has joined to stand in for them")
	default:
		return Condition{Type: conditionReady, Status: True, Reason: reasonExported}
	}
}

func conditionOf(c federation.Condition) Condition {
	out := Condition{Type: string(c.Type), Status: False, Reason: c.Reason, Message: c.Message}
	if c.Status {
		out.Status = True
	}
	return out
}

// importStatus gives each import its address, and says what it is made of.
func (w *world) importStatus(imports []federation.Import, exports map[topology.ClusterName][]federation.Export) {
	var wanted []topology.ServiceName
	for _, i := range imports {
		if i.Type != federation.Headless {
			wanted = append(wanted, i.Name)
		}
	}
	var none []topology.ServiceName
	w.addresses, none = allocate(w.in.addresses, wanted, w.in.cidr, !w.in.complete, w.in.hosts)
	offered := make(map[topology.ClusterName]map[topology.ServiceName]*federation.Export, len(exports))
	for cluster, list := range exports {
		offered[cluster] = make(map[topology.ServiceName]*federation.Export, len(list))
		for i := range list {
			offered[cluster][list[i].Name] = &list[i]
		}
	}
	w.placeHosts(imports, offered)
	for _, i := range imports {
		status := ImportStatus{Import: i, Conditions: []Condition{{Type: conditionReady, Status: True, Reason: reasonReady}}}
		if a, ok := w.addresses[i.Name]; ok && i.Type != federation.Headless {
			status.IPs = []netip.Addr{a}
		}
		if slices.Contains(none, i.Name) {
			status.Conditions[0] = Condition{
				Type: conditionReady, Status: False, Reason: reasonPending,
				Message: fmt.Sprintf("no address is free in clusterSetCIDR %s", w.in.cidr),
			}
		}
		if len(status.IPs) > 0 && !w.podsHave(status.IPs[0]) {
			status.Conditions[0] = Condition{
				Type: conditionReady, Status: False, Reason: reasonIPFamily,
				Message: fmt.Sprintf("clusterSetCIDR %s is of %s, and the pods of this cluster have no such addresses: give control one of their family", w.in.cidr, family(w.in.cidr.Addr())),
			}
		}
		for _, c := range i.Clusters {
			status.Copies = append(status.Copies, w.copiesOf(&i, c, offered[c][i.Name]))
		}
		w.imports = append(w.imports, status)
	}
	slices.SortFunc(w.imports, func(a, b ImportStatus) int { return a.Service().Compare(b.Service()) })
}

// copiesOf is what a cluster offers of an import.
func (w *world) copiesOf(i *federation.Import, cluster topology.ClusterName, e *federation.Export) Copies {
	out := Copies{Cluster: cluster, Ready: e.Ready() > 0}
	for _, p := range i.Ports {
		if !slices.Contains(p.Clusters, cluster) {
			continue
		}
		out.Ports = append(out.Ports, p.Port)
		at := slices.IndexFunc(e.Ports, func(o federation.Port) bool {
			return o.Number == p.Number && cmp.Or(o.Transport, federation.TCP) == p.Transport
		})
		if i.Type == federation.Headless && e.Type == federation.Headless && at >= 0 {
			out.Targets = append(out.Targets, e.Target(at))
		}
	}
	if i.Type == federation.Headless && e.Type == federation.Headless {
		out.Hosts = w.hostsOf(i.Name, cluster, e)
	}
	return out
}

// peerStates says of each state of a peer what it means.
var peerStates = map[string]string{
	string(federation.Waiting): "nothing of it has been accepted yet: both clusters must let each other in, and one of them reach the other's bus",
	string(federation.Stale):   "no word for a while; what it said stays in use",
	string(federation.Frozen):  "silent for long: no new exports and no new trust anchors are taken from it",
	string(federation.Expired): "silent for too long: no new connections to or from it",
}

// peerConditions says of each ClusterPeer whether the word of that cluster is good.
func (w *world) peerConditions() []PeerStatus {
	var out []PeerStatus
	for _, p := range w.in.objects.Peers {
		c := Condition{Type: conditionReady, Status: False}
		switch i := slices.IndexFunc(w.in.views, func(v *federation.View) bool { return v.Cluster == p.Cluster && v.Domain == p.Domain }); {
		case !slices.ContainsFunc(w.peers, func(o ClusterPeer) bool { return o.Name == p.Name }):
			c.Reason, c.Message = reasonNotInForce, reasonOf(w.problems, p.Object())
		case i < 0: // it has just been declared
			c.Reason = string(federation.Waiting)
			c.Message = peerStates[c.Reason]
		default:
			v := w.in.views[i]
			c.Reason = v.State()
			c.Message = strings.TrimSuffix(strings.Join([]string{peerStates[c.Reason], v.Reason}, ": "), ": ")
			c.Message = strings.TrimPrefix(c.Message, ": ")
			if v.Freshness == federation.Fresh && !v.Quarantined {
				c.Status = True
			}
		}
		out = append(out, PeerStatus{Peer: p, Conditions: []Condition{c}})
	}
	return out
}

// stampConditions sets Since of each condition to when its status last changed: now, or what it was in last.
func stampConditions(conditions, last []Condition, now time.Time) {
	for i := range conditions {
		conditions[i].Since = now.UTC().Truncate(time.Second)
		for _, l := range last {
			if l.Type == conditions[i].Type && l.Status == conditions[i].Status {
				conditions[i].Since = l.Since
			}
		}
	}
}

// stampStatus stamps all conditions of next; last may be nil.
func stampStatus(next, last *Status, now time.Time) {
	if last == nil {
		last = new(Status)
	}
	exports := make(map[topology.ServiceName][]Condition, len(last.Exports))
	for _, e := range last.Exports {
		exports[e.Export.Service] = e.Conditions
	}
	imports := make(map[topology.ServiceName][]Condition, len(last.Imports))
	for _, i := range last.Imports {
		imports[i.Service()] = i.Conditions
	}
	peers := make(map[string][]Condition, len(last.Peers))
	for _, p := range last.Peers {
		peers[p.Peer.Name] = p.Conditions
	}
	policies := make(map[string][]Condition, len(last.Policies))
	for i := range last.Policies {
		policies[last.Policies[i].Object()] = last.Policies[i].Conditions
	}
	for i := range next.Policies {
		stampConditions(next.Policies[i].Conditions, policies[next.Policies[i].Object()], now)
	}
	failover := make(map[string][]Condition, len(last.Failover))
	for i := range last.Failover {
		failover[last.Failover[i].Object()] = last.Failover[i].Conditions
	}
	for i := range next.Failover {
		stampConditions(next.Failover[i].Conditions, failover[next.Failover[i].Object()], now)
	}
	for _, p := range next.Peers {
		stampConditions(p.Conditions, peers[p.Peer.Name], now)
	}
	domains := make(map[string][]Condition, len(last.Domains))
	for _, d := range last.Domains {
		domains[d.Domain.Name] = d.Conditions
	}
	for _, d := range next.Domains {
		stampConditions(d.Conditions, domains[d.Domain.Name], now)
	}
	for _, e := range next.Exports {
		stampConditions(e.Conditions, exports[e.Export.Service], now)
	}
	for _, i := range next.Imports {
		stampConditions(i.Conditions, imports[i.Service()], now)
	}
}
