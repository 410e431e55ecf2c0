package manifest

import (
	"bytes"
	"fmt"
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
	"sigs.k8s.io/yaml"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
)

// Exports renders ServiceExports with their status, one document each.
func Exports(in []control.ExportStatus) ([]byte, error) {
	var out bytes.Buffer
	for i := range in {
		e := &in[i].Export
		object := &mcsv1beta1.ServiceExport{
			TypeMeta:   metav1.TypeMeta{APIVersion: e.APIVersion, Kind: mcsv1beta1.ServiceExportKindName},
			ObjectMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name, CreationTimestamp: metav1.NewTime(e.Created)},
			Spec:       mcsv1beta1.ServiceExportSpec{ExportedLabels: e.Labels, ExportedAnnotations: e.Annotations},
			Status:     mcsv1beta1.ServiceExportStatus{Conditions: Conditions(in[i].Conditions)},
		}
		if err := document(&out, object); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// Imports renders ServiceImports, one document each.
func Imports(in []control.ImportStatus) ([]byte, error) {
	var out bytes.Buffer
	for i := range in {
		if err := document(&out, ServiceImport(&in[i])); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// ServiceImport returns the object that stands for an import.
func ServiceImport(s *control.ImportStatus) *mcsv1beta1.ServiceImport {
	in := &s.Import
	out := &mcsv1beta1.ServiceImport{
		TypeMeta: metav1.TypeMeta{APIVersion: mcsv1beta1.GroupVersion.String(), Kind: mcsv1beta1.ServiceImportKindName},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: in.Name.Namespace(), Name: in.Name.Name(), Labels: in.Labels, Annotations: in.Annotations,
		},
		Spec: mcsv1beta1.ServiceImportSpec{
			Ports:           []mcsv1beta1.ServicePort{}, // required, be it empty
			Type:            mcsv1beta1.ServiceImportType(in.Type),
			SessionAffinity: corev1.ServiceAffinity(in.SessionAffinity),
		},
		Status: mcsv1beta1.ServiceImportStatus{
			EndpointSliceObjects: mcsv1beta1.EndpointSliceObjectsAbsent, // that a registry writes slices too is its to say
			Conditions:           Conditions(s.Conditions),
		},
	}
	for _, ip := range s.IPs {
		out.Spec.IPs = append(out.Spec.IPs, ip.String())
	}
	for _, f := range s.Families() {
		out.Spec.IPFamilies = append(out.Spec.IPFamilies, corev1.IPFamily(f))
	}
	if in.SessionAffinity == federation.ClientIPAffinity {
		seconds := int32(min(in.SessionAffinityTimeout/time.Second, maxAffinityTimeout)) //nolint:gosec // G115: bounded here
		out.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
	if in.InternalTrafficPolicy != "" {
		out.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicy(in.InternalTrafficPolicy))
	}
	if in.TrafficDistribution != "" {
		out.Spec.TrafficDistribution = new(in.TrafficDistribution)
	}
	for _, p := range in.Ports {
		port := mcsv1beta1.ServicePort{Name: p.Name, Protocol: corev1.Protocol(p.Transport), Port: int32(p.Number)}
		if port.Protocol == "" {
			port.Protocol = corev1.ProtocolTCP
		}
		if p.AppProtocol != "" {
			port.AppProtocol = new(p.AppProtocol)
		}
		out.Spec.Ports = append(out.Spec.Ports, port)
	}
	for _, c := range in.Clusters {
		out.Status.Clusters = append(out.Status.Clusters, mcsv1beta1.ClusterStatus{Cluster: c.String()})
	}
	return out
}

// FailoverPolicies renders FailoverPolicies with their status, one document each.
func FailoverPolicies(in []control.FailoverStatus) ([]byte, error) {
	var out bytes.Buffer
	for i := range in {
		object := &failoverStatus{
			TypeMeta: metav1.TypeMeta{APIVersion: meshv1alpha1.GroupVersion.String(), Kind: "FailoverPolicy"},
			Status:   FailoverStatus(&in[i]),
		}
		object.Metadata.Namespace, object.Metadata.Name = in[i].Namespace, in[i].Name
		if err := document(&out, object); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// failoverStatus is a FailoverPolicy without what its author wrote.
type failoverStatus struct {
	metav1.TypeMeta `json:",inline"`

	Metadata struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"metadata"`
	Status meshv1alpha1.FailoverPolicyStatus `json:"status"`
}

// FailoverStatus returns the status of a FailoverPolicy as its object has it.
func FailoverStatus(s *control.FailoverStatus) meshv1alpha1.FailoverPolicyStatus {
	out := meshv1alpha1.FailoverPolicyStatus{Conditions: Conditions(s.Conditions)}
	for _, r := range s.Rows {
		out.Clusters = append(out.Clusters, meshv1alpha1.FailoverClusterStatus{
			Service: r.Service.Name(), Cluster: r.Cluster, Tier: r.Tier, Ready: int32(min(r.Ready, math.MaxInt32)), Total: int32(min(r.Total, math.MaxInt32)), //nolint:gosec // G115: bounded here
			State: string(r.State), Why: r.Why,
		})
	}
	return out
}

// Problems renders what is wrong, as a list that people and programs read.
func Problems(in []control.Problem) ([]byte, error) {
	type problem struct {
		File   string `json:"file,omitempty"`
		Line   int    `json:"line,omitempty"`
		Object string `json:"object,omitempty"`
		Reason string `json:"reason"`
		Note   bool   `json:"note,omitempty"`
	}
	out := make([]problem, 0, len(in))
	for _, p := range in {
		out = append(out, problem{File: p.File, Line: p.Line, Object: p.Object, Reason: p.Reason, Note: p.Note})
	}
	data, err := yaml.Marshal(map[string]any{"problems": out})
	if err != nil {
		return nil, fmt.Errorf("manifest: problems: %w", err)
	}
	return data, nil
}

// Conditions returns conditions in the form that all of Kubernetes has for them.
func Conditions(in []control.Condition) []metav1.Condition {
	out := make([]metav1.Condition, 0, len(in))
	for _, c := range in {
		out = append(out, metav1.Condition{
			Type: c.Type, Status: metav1.ConditionStatus(c.Status), Reason: c.Reason, Message: c.Message,
			LastTransitionTime: metav1.NewTime(c.Since),
		})
	}
	return out
}

func document(out *bytes.Buffer, object any) error {
	data, err := yaml.Marshal(object)
	if err != nil {
		return fmt.Errorf("manifest: status: %w", err)
	}
	if out.Len() > 0 {
		out.WriteString("---\n")
	}
	out.Write(data)
	return nil
}
