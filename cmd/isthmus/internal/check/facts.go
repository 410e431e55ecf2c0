package check

import (
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// Seen is something that was looked at, or why it could not be.
type Seen[T any] struct {
	Value T
	Err   error
}

func see[T any](v T, err error) Seen[T] { return Seen[T]{v, err} }

// Cluster is what was seen of a cluster.
type Cluster struct {
	Name    string // the context or the socket by which it was named
	Version string // of this program
	Kube    *Kube  // nil: it is no Kubernetes cluster
	Control Seen[*Control]
}

// Installed reports whether Isthmus is there, in whatever state.
func (c *Cluster) Installed() bool { return c.Kube == nil || c.Kube.Installed() }

// Cluster is the name that the cluster calls itself, else that by which it was named.
func (c *Cluster) Cluster() string {
	if c.Control.Value != nil {
		return c.Control.Value.Status.Cluster
	}
	return c.Name
}

// Control is what a control plane said.
type Control struct {
	Status       admin.Status
	Introduction admin.Introduction
	Exports      []admin.Export
	Trust        Seen[*admin.Trust] // none: control is older than what asks
	Ahead        time.Duration      // how far its clock runs ahead of ours
}

// Kube is what was seen through an API server.
type Kube struct {
	Namespace string // of Isthmus
	CIDR      string // of imports, as it is or would be

	APIVersion   Seen[*version.Info]
	Denied       Seen[[]string] // what whoever asks may not do, of what an installation needs
	CRDs         Seen[[]CRD]
	Nodes        Seen[[]corev1.Node]
	Services     Seen[[]corev1.Service]
	NodePort     Seen[string] // what the API server has against a Service with one; empty: nothing
	ServiceCIDRs Seen[[]string]
	Corefile     Seen[string]
	Webhooks     Seen[[]admissionregistrationv1.MutatingWebhookConfiguration]
	Deployments  Seen[[]appsv1.Deployment]
	Namespaces   Seen[[]corev1.Namespace]
	StatefulSets Seen[[]appsv1.StatefulSet] // of Isthmus' namespace
	DaemonSets   Seen[[]appsv1.DaemonSet]   // likewise
	Pods         Seen[[]corev1.Pod]         // of all namespaces
	TrustBundle  Seen[string]
	Injected     Seen[bool]  // a Pod that asks for it is given a sidecar (dry run)
	DNS          Seen[Probe] // for the TXT records of dns-version.clusterset.local, in control's Pod
}

// Installed reports whether control's StatefulSet is there.
func (k *Kube) Installed() bool {
	for i := range k.StatefulSets.Value {
		if k.StatefulSets.Value[i].Name == controlName {
			return true
		}
	}
	return false
}

// CRD is a CustomResourceDefinition.
type CRD struct {
	Name   string
	Served []string // versions
	Owner  string   // the Helm release, or the field manager that made it
}
