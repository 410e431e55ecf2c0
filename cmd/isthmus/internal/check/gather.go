package check

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
)

// What the chart puts where.
const (
	controlName    = "isthmus-control"
	gatewayName    = "isthmus-gateway"
	nodeName       = "isthmus-node"
	dnsName        = "isthmus-dns"
	webhookName    = "isthmus-injection"
	bundleName     = "isthmus-trust-bundle"
	bundleKey      = "trust-bundle.pem"
	captureName    = "capture"
	busNodePort    = 30422
	gatewayPorts   = 30743 // and those that follow, one for each gateway
	gatewayCount   = 2
	corefileKey    = "Corefile"
	dnsVersionName = "dns-version.clusterset.local"
)

// pageSize bounds what one answer of an API server holds.
const pageSize = 500

// Options say how to look.
type Options struct {
	Namespace string        // of Isthmus
	CIDR      string        // that imports would have where Isthmus is not installed
	Version   string        // of this program
	Timeout   time.Duration // of each question
	// Probe is the command that is run in control's Pod to ask DNS; it says kubeaccess.Greeting, then a Probe as JSON.
	Probe []string
}

// Probe is what the command of Options.Probe says.
type Probe struct {
	TXT   []string `json:"txt,omitempty"`
	Error string   `json:"error,omitempty"`
}

// Gather looks at a cluster. cluster is nil where it is no Kubernetes cluster.
func Gather(ctx context.Context, name string, control *admin.Client, cluster *kubeaccess.Cluster, o Options) *Cluster {
	c := &Cluster{Name: name, Version: o.Version}
	if cluster == nil {
		c.Control = askControl(ctx, control, o.Timeout)
		return c
	}
	c.Kube = &Kube{Namespace: o.Namespace, CIDR: o.CIDR}
	g, err := newGatherer(cluster, o)
	if err != nil {
		c.Kube.APIVersion.Err = err
		c.Control.Err = err
		return c
	}
	g.look(ctx, c.Kube)
	if !c.Kube.Installed() {
		c.Control.Err = errors.New("Isthmus is not installed there") //nolint:staticcheck // ST1005: it is a name
		return c
	}
	c.Control = askControl(ctx, control, o.Timeout)
	if said := c.Control.Value; said != nil {
		c.Kube.CIDR = cmp.Or(said.Status.ClusterSetCIDR, o.CIDR)
		c.Kube.DNS = see(g.probe(ctx))
	} else {
		c.Kube.DNS.Err = errNoControl
	}
	return c
}

func askControl(ctx context.Context, client *admin.Client, timeout time.Duration) Seen[*Control] {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if _, err := client.Status(ctx); err != nil { // connects; that takes a while, and is not to count for the clock
		return Seen[*Control]{Err: err}
	}
	asked := time.Now()
	status, err := client.Status(ctx)
	if err != nil {
		return Seen[*Control]{Err: err}
	}
	out := &Control{Status: status}
	if !status.Now.IsZero() {
		out.Ahead = status.Now.Sub(asked.Add(time.Since(asked) / 2))
	}
	if out.Introduction, err = client.Introduction(ctx); err != nil {
		return Seen[*Control]{Err: err}
	}
	if out.Exports, err = client.Exports(ctx); errors.Is(err, admin.ErrUnreachable) {
		return Seen[*Control]{Err: err} // another error: it has not read everything yet, and its status says so
	}
	t, err := client.Trust(ctx)
	if refused, is := errors.AsType[*admin.Error](err); err == nil {
		out.Trust.Value = &t
	} else if !is || refused.Status != http.StatusNotFound {
		out.Trust.Err = err
	}
	return Seen[*Control]{Value: out}
}

// gatherer looks through an API server.
type gatherer struct {
	Options

	cluster *kubeaccess.Cluster
	kube    kubernetes.Interface
	dynamic dynamic.Interface
}

func newGatherer(cluster *kubeaccess.Cluster, o Options) (*gatherer, error) {
	set, err := cluster.Clientset()
	if err != nil {
		return nil, err
	}
	d, err := cluster.Dynamic()
	if err != nil {
		return nil, err
	}
	return &gatherer{o, cluster, set, d}, nil
}

// look asks one thing after the other, each for as long as a question may take. When the API server itself does not answer, nothing
// else is asked.
func (g *gatherer) look(ctx context.Context, k *Kube) {
	version, err := g.kube.Discovery().ServerVersion()
	k.APIVersion = see(version, g.cluster.Explain("ask for its version", err))
	if err != nil {
		for _, e := range []*error{
			&k.Denied.Err, &k.CRDs.Err, &k.Nodes.Err, &k.Services.Err, &k.NodePort.Err, &k.ServiceCIDRs.Err, &k.Corefile.Err, &k.Webhooks.Err,
			&k.Deployments.Err, &k.Namespaces.Err, &k.StatefulSets.Err, &k.DaemonSets.Err, &k.Pods.Err, &k.TrustBundle.Err, &k.Injected.Err, &k.DNS.Err,
		} {
			*e = &follows{"IST7001", "the API server does not answer"}
		}
		return
	}
	bounded := func(f func(context.Context)) {
		once, cancel := context.WithTimeout(ctx, g.Timeout)
		defer cancel()
		f(once)
	}
	all := metav1.ListOptions{Limit: pageSize}
	bounded(func(ctx context.Context) {
		k.Nodes = listed(g, "list nodes", all, func(o metav1.ListOptions) ([]corev1.Node, string, error) {
			l, err := g.kube.CoreV1().Nodes().List(ctx, o)
			return l.Items, l.Continue, err
		})
	})
	bounded(func(ctx context.Context) {
		k.Services = listed(g, "list services", all, func(o metav1.ListOptions) ([]corev1.Service, string, error) {
			l, err := g.kube.CoreV1().Services("").List(ctx, o)
			return l.Items, l.Continue, err
		})
	})
	bounded(func(ctx context.Context) {
		k.Pods = listed(g, "list pods", all, func(o metav1.ListOptions) ([]corev1.Pod, string, error) {
			l, err := g.kube.CoreV1().Pods("").List(ctx, o)
			return l.Items, l.Continue, err
		})
	})
	bounded(func(ctx context.Context) {
		k.Namespaces = listed(g, "list namespaces", all, func(o metav1.ListOptions) ([]corev1.Namespace, string, error) {
			l, err := g.kube.CoreV1().Namespaces().List(ctx, o)
			return l.Items, l.Continue, err
		})
	})
	bounded(func(ctx context.Context) {
		l, err := g.kube.AdmissionregistrationV1().MutatingWebhookConfigurations().List(ctx, metav1.ListOptions{})
		k.Webhooks = see(l.Items, g.cluster.Explain("list mutatingwebhookconfigurations", err))
	})
	bounded(func(ctx context.Context) {
		l, err := g.kube.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
		k.Deployments = see(l.Items, g.cluster.Explain("list deployments", err))
	})
	bounded(func(ctx context.Context) {
		l, err := g.kube.AppsV1().StatefulSets(g.Namespace).List(ctx, metav1.ListOptions{})
		k.StatefulSets = see(l.Items, g.cluster.Explain("list statefulsets", err))
	})
	bounded(func(ctx context.Context) {
		l, err := g.kube.AppsV1().DaemonSets(g.Namespace).List(ctx, metav1.ListOptions{})
		k.DaemonSets = see(l.Items, g.cluster.Explain("list daemonsets", err))
	})
	bounded(func(ctx context.Context) { k.Corefile = see(g.configMap(ctx, "kube-system", "coredns", corefileKey)) })
	bounded(func(ctx context.Context) { k.TrustBundle = see(g.configMap(ctx, g.Namespace, bundleName, bundleKey)) })
	bounded(func(ctx context.Context) { k.CRDs = see(g.crds(ctx)) })
	bounded(func(ctx context.Context) { k.ServiceCIDRs = see(g.serviceCIDRs(ctx, k.Services.Value)) })
	if k.Installed() {
		bounded(func(ctx context.Context) { k.Injected = see(g.injected(ctx)) })
		return
	}
	bounded(func(ctx context.Context) { k.NodePort = see(g.nodePort(ctx)) })
	bounded(func(ctx context.Context) { k.Denied = see(g.denied(ctx)) })
}

// listed follows the pages of a list.
func listed[T any](g *gatherer, doing string, o metav1.ListOptions, page func(metav1.ListOptions) ([]T, string, error)) Seen[[]T] {
	var all []T
	for {
		items, next, err := page(o)
		if err != nil {
			return Seen[[]T]{Err: g.cluster.Explain(doing, err)}
		}
		all = append(all, items...)
		if next == "" {
			return Seen[[]T]{Value: all}
		}
		o.Continue = next
	}
}

func (g *gatherer) configMap(ctx context.Context, namespace, name, key string) (string, error) {
	m, err := g.kube.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", g.cluster.Explain(fmt.Sprintf("get configmap %s/%s", namespace, name), err)
	}
	return m.Data[key], nil
}

func (g *gatherer) crds(ctx context.Context) ([]CRD, error) {
	list, err := g.dynamic.Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	}).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, g.cluster.Explain("list customresourcedefinitions", err)
	}
	var out []CRD
	for i := range list.Items {
		o := &list.Items[i]
		c := CRD{Name: o.GetName(), Owner: o.GetAnnotations()["meta.helm.sh/release-name"]}
		versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions")
		for _, v := range versions {
			if m, is := v.(map[string]any); is && m["served"] == true {
				name, _ := m["name"].(string)
				c.Served = append(c.Served, name)
			}
		}
		for _, m := range o.GetManagedFields() {
			if c.Owner == "" && m.Subresource == "" {
				c.Owner = m.Manager
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// serviceCIDRs asks for what Services are given; an API server that does not say is known by one address that it gave.
func (g *gatherer) serviceCIDRs(ctx context.Context, services []corev1.Service) ([]string, error) {
	var out []string
	list, err := g.kube.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err == nil {
		for i := range list.Items {
			out = append(out, list.Items[i].Spec.CIDRs...)
		}
		return out, nil
	}
	if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return nil, g.cluster.Explain("list servicecidrs", err)
	}
	for i := range services {
		for _, ip := range services[i].Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone {
				out = append(out, ip)
			}
		}
	}
	return out, nil
}

// nodePort asks in a dry run for the port of the bus. The range of ports is nowhere to be read.
func (g *gatherer) nodePort(ctx context.Context) (string, error) {
	_, err := g.kube.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "isthmus-check-"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 4222, NodePort: busNodePort}},
		},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if apierrors.IsInvalid(err) {
		return err.Error(), nil
	}
	return "", g.cluster.Explain("create a service in a dry run", err)
}

// injected makes, in a dry run, a Pod that asks for a sidecar. Nothing is made.
func (g *gatherer) injected(ctx context.Context) (bool, error) {
	pod, err := g.kube.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "isthmus-check-", Labels: map[string]string{"isthmus.dev/inject": "true"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "isthmus.invalid/check"}}},
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return false, g.cluster.Explain("create a pod in a dry run", err)
	}
	_, is := pod.Annotations["isthmus.dev/inbound-port"]
	return is, nil
}

// needs is what an installation writes.
var needs = []authorizationv1.ResourceAttributes{
	{Resource: "namespaces"},
	{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
	{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
	{Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
	{Group: "admissionregistration.k8s.io", Resource: "mutatingwebhookconfigurations"},
	{Namespace: "*", Group: "rbac.authorization.k8s.io", Resource: "roles"},
	{Namespace: "*", Group: "rbac.authorization.k8s.io", Resource: "rolebindings"},
	{Namespace: "*", Resource: "serviceaccounts"},
	{Namespace: "*", Resource: "configmaps"},
	{Namespace: "*", Resource: "secrets"},
	{Namespace: "*", Resource: "services"},
	{Namespace: "*", Group: "apps", Resource: "statefulsets"},
	{Namespace: "*", Group: "apps", Resource: "daemonsets"},
	{Namespace: "*", Group: "policy", Resource: "poddisruptionbudgets"},
	{Namespace: "kube-system", Resource: "configmaps", Name: "coredns", Verb: "update"},
}

// denied asks for each thing that an installation writes whether it would be let.
func (g *gatherer) denied(ctx context.Context) ([]string, error) {
	var out []string
	for _, need := range needs {
		verbs := []string{need.Verb}
		if need.Verb == "" {
			verbs = []string{"create", "patch"}
		}
		if need.Namespace == "*" {
			need.Namespace = g.Namespace
		}
		for _, verb := range verbs {
			need.Verb = verb
			answer, err := g.kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &need},
			}, metav1.CreateOptions{})
			if err != nil {
				return nil, g.cluster.Explain("create selfsubjectaccessreviews", err)
			}
			if answer.Status.Allowed {
				continue
			}
			said := fmt.Sprintf("%s %s", verb, strings.TrimSuffix(need.Resource+"."+need.Group, "."))
			if need.Namespace != "" {
				said += " in " + need.Namespace
			}
			out = append(out, said)
		}
	}
	return out, nil
}

// probe asks, in control's Pod, for a name that only the node proxies' DNS has.
func (g *gatherer) probe(ctx context.Context) (Probe, error) {
	ctx, cancel := context.WithTimeout(ctx, g.Timeout)
	defer cancel()
	conn, err := g.cluster.DialExec(ctx, g.Namespace, controlName+"-0", "control", append(g.Probe, dnsVersionName)...)
	if err != nil {
		return Probe{}, g.cluster.Explain("ask DNS in control's Pod", err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	var said Probe
	if err := json.NewDecoder(bufio.NewReader(io.LimitReader(conn, pageSize<<7))).Decode(&said); err != nil {
		return Probe{}, cmp.Or(ctx.Err(), err)
	}
	return said, nil
}
