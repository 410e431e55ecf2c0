package install

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// clusterProperty is where KEP-2149 has a cluster's name.
const clusterProperty = "cluster.clusterset.k8s.io"

// Name finds out what the cluster is called: what it says of itself (its ClusterProperty), what an installation calls it, or what
// its context is named after. It returns where the name is from too.
func (e *Engine) Name(ctx context.Context) (name, from string, err error) {
	for _, version := range []string{"v1beta1", "v1alpha1"} {
		p, wrong := e.dynamic.Resource(schema.GroupVersionResource{Group: "about.k8s.io", Version: version, Resource: "clusterproperties"}).
			Get(ctx, clusterProperty, metav1.GetOptions{})
		if apierrors.IsNotFound(wrong) {
			continue
		}
		if wrong != nil {
			return "", "", fmt.Errorf("ClusterProperty %s: %w", clusterProperty, wrong)
		}
		value, _, _ := unstructured.NestedString(p.Object, "spec", "value")
		if !label.MatchString(value) {
			return "", "", fmt.Errorf("ClusterProperty %s is %q: want an RFC 1123 label of at most 63 bytes; or name the cluster: --set cluster=NAME", clusterProperty, value)
		}
		return value, "ClusterProperty " + clusterProperty, nil
	}
	before, err := e.release(ctx, Mesh)
	if err != nil {
		return "", "", err
	}
	if before != nil {
		if name, _ := before.Config["cluster"].(string); name != "" {
			return name, "what is installed", nil
		}
	}
	if name := fromContext(e.Context); name != "" {
		return name, fmt.Sprintf("context %q", e.Context), nil
	}
	return "", "", &ValuesError{fmt.Errorf("no name for the cluster can be made of context %q: name it with --set cluster=NAME", e.Context)}
}

var (
	label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	// What tools put around a cluster's name in the name of a context.
	gke   = regexp.MustCompile(`^gke_[^_]+_[^_]+_(.+)$`)
	eks   = regexp.MustCompile(`^arn:aws[^:]*:eks:[^:]*:[^:]*:cluster/(.+)$`)
	at    = regexp.MustCompile(`^[^@/]+@(.+)$`) // kubeadm: kubernetes-admin@eu; eksctl: user@eu.region.eksctl.io
	tools = regexp.MustCompile(`^(kind|k3d|minikube)-(.+)$`)
	other = regexp.MustCompile(`[^a-z0-9]+`)
)

// fromContext makes an RFC 1123 label of the name of a context, or "" where nothing is left of it.
func fromContext(context string) string {
	name := context
	for _, around := range []*regexp.Regexp{gke, eks, at, tools} {
		if m := around.FindStringSubmatch(name); m != nil {
			name = m[len(m)-1]
		}
	}
	name, _, _ = strings.Cut(name, ".eksctl.io")
	name = strings.Trim(other.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if len(name) > 63 {
		name = strings.Trim(name[:63], "-")
	}
	return name
}
