package kindtests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

// merged is what the clusters should say of all names, given what stands in their API servers. It takes federation.Merge's word for
// what follows from exports (that has properties of its own to keep), and nothing else from the mesh.
func (m *mesh) merged(ctx context.Context, namespace string, names []string) (string, error) {
	exports := map[topology.ClusterName][]federation.Export{}
	merged := map[string]federation.Merged{} // by cluster
	for _, c := range m.members {
		own, err := c.exports(ctx, namespace)
		if err != nil {
			return "", err
		}
		exports[cluster(c.name)] = own
	}
	for _, c := range m.members {
		merged[c.name] = federation.Merge(cluster(c.name), exports)
	}
	var out strings.Builder
	for _, name := range names {
		of := service(namespace, name)
		exports, err1 := m.group(func(c *member) (string, error) { return expectExport(merged[c.name], of, cluster(c.name)) })
		imports, err2 := m.group(func(c *member) (string, error) { return expectImport(merged[c.name], of) })
		if err := errors.Join(err1, err2); err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "exports of %s\n%simports of %s\n%s", name, exports, name, imports)
	}
	return out.String(), nil
}

// exports reads what a cluster exports: its Services that have a ServiceExport.
func (c *member) exports(ctx context.Context, namespace string) ([]federation.Export, error) {
	var (
		services corev1.ServiceList
		exports  mcsv1beta1.ServiceExportList
	)
	for path, list := range map[string]any{
		"/api/v1/namespaces/" + namespace + "/services":                                   &services,
		"/apis/multicluster.x-k8s.io/v1beta1/namespaces/" + namespace + "/serviceexports": &exports,
	} {
		data, err := c.api.Get(ctx, path)
		if err = errors.Join(err, json.Unmarshal(data, list)); err != nil {
			return nil, err
		}
	}
	var out []federation.Export
	for _, e := range exports.Items {
		i := slices.IndexFunc(services.Items, func(s corev1.Service) bool { return s.Name == e.Name })
		if i >= 0 {
			out = append(out, exportOf(&services.Items[i], &e))
		}
	}
	return out, nil
}

func exportOf(s *corev1.Service, e *mcsv1beta1.ServiceExport) federation.Export {
	out := federation.Export{
		Name: service(e.Namespace, e.Name), Created: e.CreationTimestamp.Time, Type: federation.ClusterSetIP,
		SessionAffinity: federation.Affinity(s.Spec.SessionAffinity), Labels: e.Spec.ExportedLabels, Annotations: e.Spec.ExportedAnnotations,
	}
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		out.Type = federation.Headless
	}
	if config := s.Spec.SessionAffinityConfig; config != nil {
		out.SessionAffinityTimeout = time.Duration(*config.ClientIP.TimeoutSeconds) * time.Second
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		out.InternalTrafficPolicy = string(*p)
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		out.TrafficDistribution = *d
	}
	for _, p := range s.Spec.Ports {
		port := federation.Port{Name: p.Name, Number: uint16(p.Port), Transport: federation.Transport(p.Protocol)}
		if p.AppProtocol != nil {
			port.AppProtocol = *p.AppProtocol
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}

func expectExport(m federation.Merged, name topology.ServiceName, own topology.ClusterName) (string, error) {
	conditions := m.Conditions[name][own]
	if conditions == nil {
		return " none", nil
	}
	e := mcsv1beta1.ServiceExport{Status: mcsv1beta1.ServiceExportStatus{Conditions: []metav1.Condition{
		{Type: "Valid", Status: metav1.ConditionTrue, Reason: "Valid"}, {Type: "Ready", Status: metav1.ConditionTrue, Reason: "Exported"},
	}}}
	for _, c := range conditions {
		status := metav1.ConditionFalse
		if c.Status {
			status = metav1.ConditionTrue
		}
		e.Status.Conditions = append(e.Status.Conditions, metav1.Condition{Type: string(c.Type), Status: status, Reason: c.Reason})
	}
	return described(&e, describeExport)
}

func expectImport(m federation.Merged, name topology.ServiceName) (string, error) {
	at := slices.IndexFunc(m.Imports, func(i federation.Import) bool { return i.Name == name })
	if at < 0 {
		return " none", nil
	}
	in := m.Imports[at]
	policy := corev1.ServiceInternalTrafficPolicy(in.InternalTrafficPolicy)
	out := mcsv1beta1.ServiceImport{ObjectMeta: metav1.ObjectMeta{Labels: in.Labels, Annotations: in.Annotations}}
	out.Spec = mcsv1beta1.ServiceImportSpec{
		Type: mcsv1beta1.ServiceImportType(in.Type), SessionAffinity: corev1.ServiceAffinity(in.SessionAffinity), InternalTrafficPolicy: &policy,
	}
	if in.Type == federation.Headless {
		out.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	} else {
		out.Spec.IPFamilies, out.Spec.IPs = []corev1.IPFamily{corev1.IPv4Protocol}, []string{"241.0.0.1"} // whichever it is
	}
	if in.SessionAffinity == federation.ClientIPAffinity {
		seconds := int32(in.SessionAffinityTimeout / time.Second)
		out.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	if in.TrafficDistribution != "" {
		out.Spec.TrafficDistribution = &in.TrafficDistribution
	}
	for _, p := range in.Ports {
		port := mcsv1beta1.ServicePort{Name: p.Name, Port: int32(p.Number), Protocol: corev1.Protocol(p.Transport)}
		if p.AppProtocol != "" {
			port.AppProtocol = &p.AppProtocol
		}
		out.Spec.Ports = append(out.Spec.Ports, port)
	}
	for _, c := range in.Clusters {
		out.Status.Clusters = append(out.Status.Clusters, mcsv1beta1.ClusterStatus{Cluster: c.String()})
	}
	out.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue, Reason: "Ready"}}
	return described(&out, describeImport)
}

// described takes the way of an object that was read.
func described(object any, describe func([]byte) (string, error)) (string, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return "", err
	}
	return describe(data)
}

func cluster(name string) topology.ClusterName {
	c, err := topology.ParseClusterName(name)
	if err != nil {
		panic(err) // a name of our own
	}
	return c
}

func service(namespace, name string) topology.ServiceName {
	s, err := topology.NewServiceName(namespace, name)
	if err != nil {
		panic(err) // likewise
	}
	return s
}
