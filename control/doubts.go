package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// doubt reports what is well formed and can't mean what its author wants: names of nothing, and exports of nothing. It stays in force.
func (w *world) doubt(valid map[topology.ServiceName]*ServiceExport) {
	clusters := map[string]bool{w.in.self.Cluster.String(): true, topology.Same: true, "": true}
	for _, p := range w.peers {
		clusters[p.Cluster.String()] = true
	}
	for i := range w.in.objects.Exports {
		w.doubtAudience(&w.in.objects.Exports[i], clusters)
	}
	for i := range w.in.objects.Policies {
		w.doubtPolicy(&w.in.objects.Policies[i], clusters)
	}
	for i := range w.in.objects.Slices {
		w.doubtSlice(&w.in.objects.Slices[i])
	}
	for _, name := range slices.SortedFunc(maps.Keys(valid), topology.ServiceName.Compare) {
		w.doubtCopies(valid[name], w.services[name])
	}
}

func (w *world) doubtful(m *Meta, format string, args ...any) {
	w.problems = append(w.problems, Problem{Source: m.Source, Object: m.Object(), Reason: fmt.Sprintf(format, args...)})
}

// doubtAudience: who is named and is no peer can't call, and likely somebody else was meant.
func (w *world) doubtAudience(e *ServiceExport, clusters map[string]bool) {
	for _, c := range e.Audience {
		if !clusters[c.String()] {
			w.doubtful(&e.Meta, "%s names %s, which is no peer of this cluster", AudienceAnnotation, c)
		}
	}
}

// doubtPolicy: a tier of a cluster that does not exist is empty, and what it was to hold is used nowhere.
func (w *world) doubtPolicy(p *FailoverPolicy, clusters map[string]bool) {
	unknown := func(cluster, where string) {
		if !clusters[cluster] {
			w.doubtful(&p.Meta, "%s names cluster %s, which is neither this one nor a peer", where, cluster)
		}
	}
	for _, t := range p.Policy.Tiers {
		unknown(t.Match.Cluster, "tier "+t.Name)
		for _, cluster := range slices.Sorted(maps.Keys(t.Weights)) {
			unknown(cluster, "tier "+t.Name+", weights:")
		}
	}
	for i, n := range p.Policy.Never {
		unknown(n.Cluster, fmt.Sprintf("never[%d]", i))
	}
}

// doubtSlice: copies of a Service that does not exist, or on ports that it does not have, are copies of nothing.
func (w *world) doubtSlice(s *EndpointSlice) {
	r := w.services[s.Service]
	if r == nil {
		w.doubtful(&s.Meta, "it is of the Service %s/%s, by its label %s, which does not exist", s.Namespace, s.Service.Name(), serviceNameLabel)
		return
	}
	matches := func(p ServicePort) bool {
		return slices.ContainsFunc(s.Ports, func(sp SlicePort) bool { return sp.Name == p.Name && sp.Transport == p.Transport })
	}
	if !r.service.ExternalName && len(s.Ports) > 0 && len(r.service.Ports) > 0 && !slices.ContainsFunc(r.service.Ports, matches) {
		w.doubtful(&s.Meta, "none of its ports has the name and the protocol of a port of Service %s: it has %s, the Service %s",
			s.Service.Name(), portNames(s.Ports), servicePortNames(r.service.Ports))
	}
}

// serviceNameLabel is how an EndpointSlice says whose it is (discovery.k8s.io/v1).
const serviceNameLabel = "kubernetes.io/service-name"

// doubtCopies: what has no copies at all was likely not meant to be exported yet, or is misspelt; or it is scaled to zero, which is nothing wrong.
func (w *world) doubtCopies(e *ServiceExport, r *resolved) {
	if r.copies > 0 {
		return
	}
	why := "no EndpointSlice has an endpoint on one of its ports"
	if len(r.service.Selector) > 0 {
		why = fmt.Sprintf("no workload has the labels %s and one of its ports, and %s", selectorText(r.service.Selector), why)
	}
	w.doubtful(&e.Meta, "the Service has no copies: %s", why)
	w.problems[len(w.problems)-1].Note = true
}

func selectorText(s map[string]string) string {
	return topology.Selector{Labels: s}.String()[len("labels="):]
}

func portNames(ports []SlicePort) string {
	var out []string
	for _, p := range ports {
		out = append(out, portText(p.Name, p.Number, p.Transport))
	}
	return listText(out)
}

func servicePortNames(ports []ServicePort) string {
	var out []string
	for _, p := range ports {
		out = append(out, portText(p.Name, p.Number, p.Transport))
	}
	return listText(out)
}

func portText(name string, number uint16, t federation.Transport) string {
	if name == "" {
		name = "one without a name"
	}
	return fmt.Sprintf("%s (%d/%s)", name, number, t)
}

func listText(s []string) string {
	slices.Sort(s)
	return strings.Join(s, ", ")
}
