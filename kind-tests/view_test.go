package kindtests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/isthmus-mesh/isthmus/kind-tests/apiserver"
)

// What scenarios compare is one view of a name in all clusters, as text. Clusters that see the same stand together:
//
//	eu us:
//	  ClusterSetIP IPv4 from us
//	  port http 80/TCP
//	  Ready=True/Ready
//	ap: no namespace

// managedBy is the label by which control knows its own imports; views leave it out.
const managedBy = "isthmus.dev/managed-by"

// view describes the objects of that name in all clusters.
func (m *mesh) view(ctx context.Context, kind, namespace, name string) (string, error) {
	describe := map[string]func([]byte) (string, error){"exports": describeExport, "imports": describeImport, "slices": describeSlices}[kind]
	if describe == nil {
		return "", fmt.Errorf("no view of %q; there are exports, imports and slices", kind)
	}
	return m.group(func(c *member) (string, error) {
		path := "/apis/multicluster.x-k8s.io/v1beta1/namespaces/" + namespace + "/service" + kind + "/" + name
		if kind == "slices" {
			path = "/apis/discovery.k8s.io/v1/namespaces/" + namespace + "/endpointslices?labelSelector=" + mcsv1beta1.LabelServiceName + "%3D" + name
		}
		return c.describe(ctx, path, namespace, describe)
	})
}

// group puts clusters together of which one and the same can be said.
func (m *mesh) group(say func(*member) (string, error)) (string, error) {
	var (
		texts []string                // that differ, in the order of the first cluster that has each
		of    = map[string][]string{} // clusters by text
	)
	for _, c := range m.members {
		text, err := say(c)
		if err != nil {
			return "", err
		}
		if of[text] == nil {
			texts = append(texts, text)
		}
		of[text] = append(of[text], c.name)
	}
	var out strings.Builder
	for _, text := range texts {
		fmt.Fprintf(&out, "%s:%s\n", strings.Join(of[text], " "), text)
	}
	return out.String(), nil
}

func (c *member) describe(ctx context.Context, path, namespace string, describe func([]byte) (string, error)) (string, error) {
	data, err := c.api.Get(ctx, path)
	if err == nil {
		return describe(data)
	}
	if !errors.Is(err, apiserver.ErrNotFound) {
		return "", err
	}
	if _, err = c.api.Get(ctx, "/api/v1/namespaces/"+namespace); errors.Is(err, apiserver.ErrNotFound) {
		return " no namespace", nil
	}
	return " none", err
}

func describeExport(data []byte) (string, error) {
	var e mcsv1beta1.ServiceExport
	if err := json.Unmarshal(data, &e); err != nil {
		return "", err
	}
	return strings.Join(describeConditions(e.Status.Conditions, e.Generation), ""), nil
}

func describeImport(data []byte) (string, error) {
	var i mcsv1beta1.ServiceImport
	if err := json.Unmarshal(data, &i); err != nil {
		return "", err
	}
	lines := []string{fmt.Sprintf("\n  %s %s from %s", i.Spec.Type, join(i.Spec.IPFamilies, "+"), join(i.Status.Clusters, " "))}
	add := func(format string, args ...any) { lines = append(lines, "\n  "+fmt.Sprintf(format, args...)) }
	if what := describeIPs(&i.Spec); what != "" {
		add("%s", what)
	}
	for _, p := range i.Spec.Ports {
		port := fmt.Sprintf("port %s %d/%s", p.Name, p.Port, p.Protocol)
		if p.AppProtocol != nil {
			port += " " + *p.AppProtocol
		}
		add("%s", strings.Replace(port, "  ", " ", 1))
	}
	if a := i.Spec.SessionAffinity; a != "" && a != corev1.ServiceAffinityNone {
		add("sessionAffinity %s %s", i.Spec.SessionAffinity, describeTimeout(i.Spec.SessionAffinityConfig))
	}
	if p := i.Spec.InternalTrafficPolicy; p != nil && *p != corev1.ServiceInternalTrafficPolicyCluster {
		add("internalTrafficPolicy %s", *i.Spec.InternalTrafficPolicy)
	}
	if i.Spec.TrafficDistribution != nil {
		add("trafficDistribution %s", *i.Spec.TrafficDistribution)
	}
	delete(i.Labels, managedBy)
	delete(i.Annotations, corev1.LastAppliedConfigAnnotation) // where kubectl made the import, and not control
	for _, k := range slices.Sorted(maps.Keys(i.Labels)) {
		add("label %s=%s", k, i.Labels[k])
	}
	for _, k := range slices.Sorted(maps.Keys(i.Annotations)) {
		add("annotation %s=%s", k, i.Annotations[k])
	}
	return strings.Join(append(lines, describeConditions(i.Status.Conditions, i.Generation)...), ""), nil
}

// describeSlices has a line for each slice of an import, and one for each port and endpoint.
func describeSlices(data []byte) (string, error) {
	var all discoveryv1.EndpointSliceList
	if err := json.Unmarshal(data, &all); err != nil {
		return "", err
	}
	if len(all.Items) == 0 {
		return " none", nil
	}
	slices.SortFunc(all.Items, func(a, b discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	var out strings.Builder
	for i := range all.Items {
		s := &all.Items[i]
		fmt.Fprintf(&out, "\n  %s of %s by %s", s.AddressType, s.Labels[mcsv1beta1.LabelSourceCluster], s.Labels[discoveryv1.LabelManagedBy])
		if local, has := s.Labels[discoveryv1.LabelServiceName]; has {
			fmt.Fprintf(&out, " as copies of Service %s", local)
		}
		for _, p := range s.Ports {
			fmt.Fprintf(&out, "\n    port %s %d/%s", *p.Name, *p.Port, *p.Protocol)
		}
		for _, e := range s.Endpoints {
			what := strings.Join(e.Addresses, " ")
			if inClusterSet(e.Addresses) {
				what = "clusterset IP" // which one, only imports say
			}
			if e.Hostname != nil {
				what += " " + *e.Hostname
			}
			fmt.Fprintf(&out, "\n    %s ready=%t", what, e.Conditions.Ready == nil || *e.Conditions.Ready)
		}
	}
	return out.String(), nil
}

// inClusterSet reports whether an endpoint has one address, and it is of the mesh's own range.
func inClusterSet(addresses []string) bool {
	return len(addresses) == 1 && strings.HasPrefix(addresses[0], "241.")
}

// describeIPs says what is wrong with the addresses: one of each family, in the order of the families; none of a headless service.
func describeIPs(spec *mcsv1beta1.ServiceImportSpec) string {
	var families []corev1.IPFamily
	for _, s := range spec.IPs {
		switch ip, err := netip.ParseAddr(s); {
		case err != nil:
			return fmt.Sprintf("ips %q: %v", spec.IPs, err)
		case ip.Is4():
			families = append(families, corev1.IPv4Protocol)
		default:
			families = append(families, corev1.IPv6Protocol)
		}
	}
	if spec.Type == mcsv1beta1.Headless && len(families) == 0 || spec.Type == mcsv1beta1.ClusterSetIP && slices.Equal(families, spec.IPFamilies) {
		return ""
	}
	return fmt.Sprintf("ips %q", spec.IPs)
}

func describeTimeout(config *corev1.SessionAffinityConfig) string {
	if config == nil || config.ClientIP == nil || config.ClientIP.TimeoutSeconds == nil {
		return "without a timeout"
	}
	return fmt.Sprintf("%ds", *config.ClientIP.TimeoutSeconds)
}

// describeConditions orders by type. One that speaks of an earlier spec says so.
func describeConditions(conditions []metav1.Condition, generation int64) []string {
	if len(conditions) == 0 {
		return []string{"\n  no conditions"}
	}
	var out []string
	for _, c := range conditions {
		line := fmt.Sprintf("\n  %s=%s/%s", c.Type, c.Status, c.Reason)
		if c.ObservedGeneration != generation {
			line += fmt.Sprintf(" of generation %d, which is %d now", c.ObservedGeneration, generation)
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

func join[T any](in []T, separator string) string {
	if len(in) == 0 {
		return "nobody"
	}
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = strings.Trim(fmt.Sprint(v), "{}") // a ClusterStatus is one name
	}
	return strings.Join(out, separator)
}
