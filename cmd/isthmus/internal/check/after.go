package check

import (
	"bytes"
	"encoding/pem"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// The marks of the stub in CoreDNS's Corefile.
const (
	stubBegin = "# isthmus begin"
	stubEnd   = "# isthmus end"
)

const (
	// rootSoon is how long before the end of a trust domain's root it is told.
	rootSoon = 30 * 24 * time.Hour
	// A peer's word is stale after a minute, by the clock of whoever signed it.
	skewTold  = 5 * time.Second
	skewMost  = 30 * time.Second
	namesMost = 5 // of Pods, in one line
)

var errOld = errors.New("control is of an older version, which does not say")

var errNoControl = &follows{"IST7101", "control does not answer"}

// said hands control's words to a judge, where there are some.
func said(f func(*Control) verdict) func(*Cluster) verdict {
	return func(c *Cluster) verdict {
		if c.Control.Err != nil {
			return unknown(errNoControl)
		}
		return f(c.Control.Value)
	}
}

var afterControl = one{
	Check{
		"IST7101", "Control", "its Pod is ready, and its admin socket answers",
		"kubectl -n isthmus-system describe pod isthmus-control-0, and its log. Calls go on without it, by the last state.",
	}, after, false, func(c *Cluster) verdict {
		if c.Control.Err != nil {
			return failed(c.Control.Err.Error())
		}
		s := c.Control.Value
		if !s.Status.Ready {
			if len(s.Status.Missing) == 0 {
				return failed("it is not ready")
			}
			return failed(prefixed("it waits for ", s.Status.Missing)...)
		}
		return ok(s.Status.Cluster + ", trust domain " + s.Status.TrustDomain)
	},
}

var afterGateways = one{
	Check{
		"IST7102", "Gateways", "all are ready and connected with control, and there are two or more",
		"kubectl -n isthmus-system describe pods -l app.kubernetes.io/component=gateway. With one, an update of it interrupts calls to other clusters.",
	}, after, false, func(c *Cluster) verdict {
		var found []string
		n := 0
		if c.Kube != nil {
			if c.Kube.StatefulSets.Err != nil {
				return unknown(c.Kube.StatefulSets.Err)
			}
			i := slices.IndexFunc(c.Kube.StatefulSets.Value, func(s appsv1.StatefulSet) bool { return s.Name == gatewayName })
			if i < 0 {
				return failed("there is no StatefulSet " + gatewayName)
			}
			s := &c.Kube.StatefulSets.Value[i]
			if n = int(s.Status.Replicas); s.Spec.Replicas != nil {
				n = int(*s.Spec.Replicas)
			}
			if int(s.Status.ReadyReplicas) < n {
				found = append(found, sprintf("%d of %d are ready", s.Status.ReadyReplicas, n))
				found = append(found, troubles(c.Kube, "gateway")...)
			}
		}
		if s := c.Control.Value; s != nil {
			connected := 0
			for _, p := range s.Status.Proxies {
				switch {
				case p.Program != "gateway":
				case p.Connected:
					connected++
				default:
					found = append(found, p.Name+" is not connected with control")
				}
			}
			n = max(n, connected)
		}
		switch {
		case len(found) > 0:
			return failed(found...)
		case n == 0 && c.Control.Err != nil:
			return unknown(errNoControl)
		case n == 0:
			return failed("there is none")
		case n == 1:
			return warning("there is one")
		default:
			return ok(sprintf("%d", n))
		}
	},
}

// troubles says of each Pod of a component that is not ready why.
func troubles(k *Kube, component string) []string {
	var out []string
	for i := range k.Pods.Value {
		p := &k.Pods.Value[i]
		if p.Namespace != k.Namespace || p.Labels["app.kubernetes.io/component"] != component {
			continue
		}
		if why := PodTrouble(p); why != "" {
			out = append(out, p.Name+": "+why)
		}
	}
	return out
}

var afterNodes = one{
	Check{
		"IST7103", "Node proxies", "one is ready on every node, and so is its capture",
		"kubectl -n isthmus-system describe pods -l app.kubernetes.io/component=node. Workloads of a node without one reach no import.",
	}, after, true, func(c *Cluster) verdict {
		for _, err := range []error{c.Kube.DaemonSets.Err, c.Kube.Nodes.Err, c.Kube.Pods.Err} {
			if err != nil {
				return unknown(err)
			}
		}
		if !slices.ContainsFunc(c.Kube.DaemonSets.Value, func(d appsv1.DaemonSet) bool { return d.Name == nodeName }) {
			return skipped("node.enabled is false")
		}
		on := map[string]*corev1.Pod{}
		for i := range c.Kube.Pods.Value {
			if p := &c.Kube.Pods.Value[i]; p.Namespace == c.Kube.Namespace && p.Labels["app.kubernetes.io/component"] == "node" {
				on[p.Spec.NodeName] = p
			}
		}
		var found []string
		for i := range c.Kube.Nodes.Value {
			name := c.Kube.Nodes.Value[i].Name
			p := on[name]
			if p == nil {
				found = append(found, "none on "+name)
				continue
			}
			captured := slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
				return s.Name == captureName && s.State.Running != nil
			})
			switch why := PodTrouble(p); {
			case why != "":
				found = append(found, sprintf("%s on %s: %s", p.Name, name, why))
			case !captured:
				found = append(found, sprintf("%s on %s captures nothing: its container %s does not run", p.Name, name, captureName))
			}
		}
		return faults(found, sprintf("on %d", len(c.Kube.Nodes.Value)))
	},
}

var afterVersions = one{
	Check{
		"IST7104", "Versions", "all programs of a cluster, and this one, are of one version",
		"isthmus install, of the version that you want, brings all to it; restart Pods whose sidecar is older.",
	}, after, false, func(c *Cluster) verdict {
		if c.Control.Err != nil {
			return unknown(errNoControl)
		}
		control := c.Control.Value.Status.Version
		var found []string
		if c.Version != control {
			found = append(found, sprintf("control is %s, this is %s", control, c.Version))
		}
		older := map[string]int{}
		for _, p := range c.Control.Value.Status.Proxies {
			if p.Connected && p.Version != control {
				older[sprintf("%s %s", p.Program, p.Version)]++
			}
		}
		for what, n := range older {
			found = append(found, sprintf("%d x %s, control is %s", n, what, control))
		}
		if len(found) > 0 {
			slices.Sort(found)
			return warning(found...)
		}
		return ok(control)
	},
}

var afterWebhook = one{
	Check{
		"IST7105", "Injection", "the API server asks control's webhook, knows it by the trust domain's roots, and Pods that ask for a sidecar get one",
		"See isthmus status (problems of MutatingWebhookConfiguration isthmus-injection), and whether the API server reaches Service isthmus-control, port 7443.",
	}, after, true, judgeWebhook,
}

func judgeWebhook(c *Cluster) verdict {
	k := c.Kube
	if k.Webhooks.Err != nil {
		return unknown(k.Webhooks.Err)
	}
	i := slices.IndexFunc(k.Webhooks.Value, func(w admissionregistrationv1.MutatingWebhookConfiguration) bool { return w.Name == webhookName })
	if i < 0 {
		return skipped("injection is off: there is no MutatingWebhookConfiguration " + webhookName)
	}
	if k.TrustBundle.Err != nil {
		return unknown(k.TrustBundle.Err)
	}
	var found []string
	for _, w := range k.Webhooks.Value[i].Webhooks {
		if !sameCertificates(w.ClientConfig.CABundle, []byte(k.TrustBundle.Value)) {
			found = append(found, sprintf("the caBundle of %s is not what ConfigMap %s has", w.Name, bundleName))
		}
	}
	switch {
	case k.Injected.Err != nil:
		found = append(found, "a Pod that asks for a sidecar can't be made: "+k.Injected.Err.Error())
	case !k.Injected.Value:
		found = append(found, "a Pod that asks for a sidecar gets none")
	}
	return faults(found)
}

// sameCertificates reports whether two PEM texts hold the same ones, in whatever order.
func sameCertificates(a, b []byte) bool {
	blocks := func(in []byte) [][]byte {
		var out [][]byte
		for block, rest := pem.Decode(in); block != nil; block, rest = pem.Decode(rest) {
			out = append(out, block.Bytes)
		}
		slices.SortFunc(out, bytes.Compare)
		return out
	}
	return slices.EqualFunc(blocks(a), blocks(b), bytes.Equal)
}

var afterStub = one{
	Check{
		"IST7106", "DNS stub", "CoreDNS forwards clusterset.local to the ClusterIP of isthmus-dns",
		"isthmus install puts it right; where another DNS is in force, have it forward that zone there.",
	}, after, true, func(c *Cluster) verdict {
		k := c.Kube
		if k.Services.Err != nil {
			return unknown(k.Services.Err)
		}
		i := slices.IndexFunc(k.Services.Value, func(s corev1.Service) bool { return s.Namespace == k.Namespace && s.Name == dnsName })
		if i < 0 {
			return skipped("node.enabled is false: there is no Service " + dnsName)
		}
		ip := k.Services.Value[i].Spec.ClusterIP
		switch _, rest, there := strings.Cut(k.Corefile.Value, stubBegin); {
		case k.Corefile.Err != nil:
			return unknown(k.Corefile.Err)
		case !there && strings.Contains(k.Corefile.Value, "clusterset.local"):
			return warning("its Corefile has a block for clusterset.local that was written by hand")
		case !there:
			return failed("its Corefile has no block of ours")
		default:
			stub, _, _ := strings.Cut(rest, stubEnd)
			if !slices.Contains(strings.Fields(stub), ip) {
				return failed(sprintf("its Corefile does not forward to %s", ip))
			}
			return ok(ip)
		}
	},
}

var afterDNS = one{
	Check{
		"IST7107", "DNS", "in a Pod, the cluster's DNS answers for clusterset.local",
		"See IST7106 and IST7103; CoreDNS reads a changed Corefile within two minutes.",
	}, after, true, func(c *Cluster) verdict {
		switch d := c.Kube.DNS; {
		case d.Err != nil:
			return unknown(d.Err)
		case len(d.Value.TXT) == 0:
			return failed(strings.TrimSpace(dnsVersionName + " has no answer: " + d.Value.Error))
		default:
			return ok(dnsVersionName + " is " + strings.Join(d.Value.TXT, " "))
		}
	},
}

var afterBare = one{
	Check{
		"IST7108", "Pods without a sidecar", "every Pod in a namespace with isthmus.dev/inject=enabled has one",
		"They were made before the namespace asked for it: kubectl rollout restart what makes them.",
	}, after, true, judgeBare,
}

func judgeBare(c *Cluster) verdict {
	for _, err := range []error{c.Kube.Namespaces.Err, c.Kube.Pods.Err} {
		if err != nil {
			return unknown(err)
		}
	}
	const label = "isthmus.dev/inject"
	asks := map[string]bool{}
	for i := range c.Kube.Namespaces.Value {
		asks[c.Kube.Namespaces.Value[i].Name] = c.Kube.Namespaces.Value[i].Labels[label] == "enabled"
	}
	bare := map[string][]string{}
	for i := range c.Kube.Pods.Value {
		p := &c.Kube.Pods.Value[i]
		wish := p.Labels[label]
		if wish == "" {
			wish = p.Annotations[label]
		}
		_, meshed := p.Annotations["isthmus.dev/inbound-port"]
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil
		if meshed || ended || p.Spec.HostNetwork || p.Namespace == c.Kube.Namespace || wish == "false" || !asks[p.Namespace] && wish != "true" {
			continue
		}
		bare[p.Namespace] = append(bare[p.Namespace], p.Name)
	}
	var found []string
	for namespace, pods := range bare {
		slices.Sort(pods)
		more := ""
		if n := len(pods) - namesMost; n > 0 {
			pods, more = pods[:namesMost], sprintf(" and %d more", n)
		}
		found = append(found, namespace+": "+strings.Join(pods, ", ")+more)
	}
	slices.Sort(found)
	return faults(found)
}

var afterFindings = one{
	Check{
		"IST7109", "Manifests", "everything that is declared is in force",
		"The message says what is wrong with each object.",
	}, after, false, said(func(s *Control) verdict {
		var found []string
		for _, p := range s.Status.Manifests.Problems {
			if p.Note {
				continue
			}
			where := strings.TrimSpace(p.File + " " + p.Object)
			found = append(found, where+": "+p.Reason)
		}
		return faults(found, sprintf("%d objects", s.Status.Manifests.Objects))
	}),
}

var afterExports = one{
	Check{
		"IST7110", "Exports", "every ServiceExport is valid, and conflicts with no other cluster's",
		"An export needs a Service of its name. In a conflict, give that the ports, type and affinity that it has in the other clusters: the oldest export counts.",
	}, after, false, said(func(s *Control) verdict {
		var found []string
		for _, e := range s.Exports {
			for _, c := range e.Conditions {
				if Wrong(c) {
					found = append(found, sprintf("%s/%s: %s: %s", e.Namespace, e.Name, c.Reason, c.Message))
				}
			}
		}
		return faults(found, sprintf("%d", len(s.Exports)))
	}),
}

// Wrong reports whether a condition of an export says that something is wrong. A conflict of labels or annotations alone is none:
// those of an import are the oldest export's, but where a FailoverPolicy asks for labels each cluster's own count.
func Wrong(c admin.Condition) bool {
	switch c.Type {
	case "Valid":
		return c.Status != "True"
	case "Conflict":
		if c.Status != "True" {
			return false
		}
		for r := range strings.SplitSeq(c.Reason, ",") {
			if r != "LabelsConflict" && r != "AnnotationsConflict" {
				return true
			}
		}
	}
	return false
}

var afterPeers = one{
	Check{
		"IST7111", "Peers", "the word of every peer is fresh",
		"Both clusters must let each other in (isthmus peer), and one of them must reach the other's bus: its address, firewalls, and IST7203 of both together.",
	}, after, false, said(func(s *Control) verdict {
		var found []string
		for _, p := range s.Status.Peers {
			if p.State != "Fresh" {
				found = append(found, strings.TrimSpace(sprintf("%s is %s (bus %s) %s", p.Cluster, p.State, p.Bus, p.Reason)))
			}
		}
		if len(s.Status.Peers) == 0 {
			return warning("there is none: isthmus peer invite")
		}
		return faults(found, sprintf("%d", len(s.Status.Peers)))
	}),
}

var afterLinks = one{
	Check{
		"IST7112", "Links", "every gateway has a link to every peer",
		"The detail says why. Gateways reach each other over UDP, or over TCP, at what gateway.advertise says: firewalls, security groups, node addresses.",
	}, after, false, said(func(s *Control) verdict {
		var found []string
		revoked := map[string]string{}
		up := 0
		for _, l := range s.Status.Links {
			if l.Carries() {
				up++
				continue
			}
			if i := slices.IndexFunc(s.Status.Peers, func(p admin.Peer) bool { return p.Cluster == l.Cluster && p.State == "Revoked" }); i >= 0 {
				revoked[l.Cluster] = strings.TrimSpace(sprintf("%s is revoked here, and no link to it is let stand: %s", l.Cluster, s.Status.Peers[i].Reason))
				continue
			}
			found = append(found, strings.TrimSpace(sprintf("%s to %s is %s %s", l.Gateway, l.Cluster, l.State, l.Detail)))
		}
		for _, p := range s.Status.Peers {
			if p.State == "Fresh" && p.Gateways > 0 && !slices.ContainsFunc(s.Status.Links, func(l admin.Link) bool { return l.Cluster == p.Cluster }) {
				found = append(found, "no gateway speaks of a link to "+p.Cluster)
			}
		}
		for _, cluster := range slices.Sorted(maps.Keys(revoked)) {
			found = append(found, revoked[cluster]+" (isthmus trust revoke "+cluster+" --undo)")
		}
		return faults(found, sprintf("%d up", up))
	}),
}

var afterCertificates = one{
	Check{
		"IST7113", "Certificates", "the trust domain's root ends in more than 30 days",
		"Control makes a new root in time and hands it out. When it does not, its log says why.",
	}, after, false, said(func(s *Control) verdict {
		left := s.Status.RootExpires.Sub(s.Status.Now)
		text := "the root ends " + s.Status.RootExpires.Format(time.DateOnly)
		switch {
		case s.Status.Now.IsZero():
			return unknown(errOld)
		case left <= 0:
			return failed(text)
		case left < rootSoon:
			return warning(text)
		default:
			return ok(text)
		}
	}),
}

var afterClock = one{
	Check{
		"IST7114", "Clock", "control's clock and that of this machine agree within 5 s",
		"Set the clocks by NTP. What clusters tell each other carries times; IST7204 compares the clusters.",
	}, after, false, said(func(s *Control) verdict {
		if s.Status.Now.IsZero() {
			return unknown(errOld)
		}
		if s.Ahead.Abs() > skewTold {
			return warning(ahead(s.Ahead)) // it may be this machine's
		}
		return ok()
	}),
}

func ahead(d time.Duration) string {
	if d < 0 {
		return sprintf("%s behind", (-d).Round(100*time.Millisecond))
	}
	return sprintf("%s ahead", d.Round(100*time.Millisecond))
}
