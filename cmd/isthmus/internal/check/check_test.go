package check_test

import (
	"encoding/pem"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
)

func meta(namespace, name string, labels ...string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{}}
	for i := 0; i < len(labels); i += 2 {
		m.Labels[labels[i]] = labels[i+1]
	}
	return m
}

func running(namespace, name, component, node string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: meta(namespace, name, "app.kubernetes.io/component", component), Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "capture", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
		},
	}
}

func certificate(text string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(text)}))
}

// healthy is a cluster with everything in order: eu, linked with us; or the other way round.
func healthy(name, peer string) *check.Cluster {
	const ns = "isthmus-system"
	k := &check.Kube{Namespace: ns, CIDR: "241.0.0.0/8"}
	k.APIVersion.Value = &version.Info{Major: "1", Minor: "34+", GitVersion: "v1.34.4"}
	for _, crd := range []string{
		"clusterpeers.isthmus.dev", "failoverpolicies.isthmus.dev", "federatedtrustdomains.isthmus.dev", "workloads.isthmus.dev",
		"serviceexports.multicluster.x-k8s.io", "serviceimports.multicluster.x-k8s.io",
	} {
		k.CRDs.Value = append(k.CRDs.Value, check.CRD{Name: crd, Served: []string{"v1alpha1", "v1beta1"}})
	}
	k.Nodes.Value = []corev1.Node{{
		ObjectMeta: meta("", "n1"), Spec: corev1.NodeSpec{PodCIDRs: []string{"10.1.0.0/16"}},
		Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "arm64", KernelVersion: "6.1.0-x"}},
	}}
	k.Services.Value = []corev1.Service{
		{ObjectMeta: meta(ns, "isthmus-dns"), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7"}},
		{ObjectMeta: meta(ns, "isthmus-bus", "app.kubernetes.io/name", "isthmus"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{NodePort: 30422}}}},
	}
	k.ServiceCIDRs.Value = []string{"10.96.0.0/12", "fd00::/108"}
	k.Corefile.Value = ".:53 {\n}\n# isthmus begin\nclusterset.local:53 {\n    forward . 10.96.0.7\n}\n# isthmus end\n"
	k.Namespaces.Value = []corev1.Namespace{{ObjectMeta: meta("", ns)}, {ObjectMeta: meta("", "shop", "isthmus.dev/inject", "enabled")}}
	k.StatefulSets.Value = []appsv1.StatefulSet{
		{ObjectMeta: meta(ns, "isthmus-control")},
		{ObjectMeta: meta(ns, "isthmus-gateway"), Spec: appsv1.StatefulSetSpec{Replicas: new(int32(2))}, Status: appsv1.StatefulSetStatus{ReadyReplicas: 2}},
	}
	k.DaemonSets.Value = []appsv1.DaemonSet{{ObjectMeta: meta(ns, "isthmus-node")}}
	web := running("shop", "web", "", "n1")
	web.Annotations = map[string]string{"isthmus.dev/inbound-port": "15008"}
	k.Pods.Value = []corev1.Pod{running(ns, "isthmus-node-x", "node", "n1"), web}
	k.Webhooks.Value = []admissionregistrationv1.MutatingWebhookConfiguration{{
		ObjectMeta: meta("", "isthmus-injection"),
		Webhooks: []admissionregistrationv1.MutatingWebhook{{ClientConfig: admissionregistrationv1.WebhookClientConfig{
			CABundle: []byte(certificate("new") + certificate("old")),
		}}},
	}}
	k.TrustBundle.Value = certificate("old") + certificate("new")
	k.Injected.Value = true
	k.DNS.Value = check.Probe{TXT: []string{"1.0.0"}}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	control := &check.Control{
		Status: admin.Status{
			Cluster: name, TrustDomain: name + ".test", Version: "v1", Ready: true, Now: now, RootExpires: now.AddDate(1, 0, 0), ClusterSetCIDR: k.CIDR,
			Peers: []admin.Peer{{Cluster: peer, State: "Fresh", Gateways: 2, RootFingerprint: "of " + peer}},
			Links: []admin.Link{{Gateway: "g0", Cluster: peer, State: "up", RTT: 2 * time.Millisecond}, {Gateway: "g1", Cluster: peer, State: "up", RTT: time.Millisecond}},
			Proxies: []admin.Proxy{
				{Program: "gateway", Name: "g0", Connected: true, Version: "v1"}, {Program: "gateway", Name: "g1", Connected: true, Version: "v1"},
			},
		},
		Introduction: admin.Introduction{Cluster: name, RootFingerprint: "of " + name, BusKey: "key of " + name},
		Exports:      []admin.Export{{Namespace: "shop", Name: "web", Conditions: []admin.Condition{{Type: "Valid", Status: "True"}}}},
	}
	c := &check.Cluster{Name: "kind-" + name, Version: "v1", Kube: k}
	control.Trust.Value = trusting(name, peer, now)
	c.Control.Value = control
	return c
}

// trusting is what the control of a cluster says of its trust in another.
func trusting(name, peer string, now time.Time) *admin.Trust {
	domain := func(of, source string) admin.TrustedDomain {
		root := admin.Certificate{Subject: of + " root", State: "active", KeyID: "sha256:" + of, NotBefore: now.AddDate(0, 0, -10), NotAfter: now.AddDate(0, 0, 80)}
		return admin.TrustedDomain{TrustDomain: of + ".test", Cluster: of, Source: source, State: "Fresh", Sequence: 7, Roots: []admin.Certificate{root}}
	}
	lasting := func(days int) *admin.Certificate {
		return &admin.Certificate{NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(0, 0, days)}
	}
	return &admin.Trust{
		Cluster: name, TrustDomain: name + ".test", Now: now, MemberRoot: lasting(50),
		Authority: admin.Authority{Kind: "builtin", SVIDLifetime: time.Hour, Issuing: lasting(1)},
		Rotation:  admin.Rotation{Phase: admin.RotationIdle},
		Domains:   []admin.TrustedDomain{domain(name, "own"), domain(peer, "peer")},
	}
}

// bare is the same cluster before Isthmus came.
func bare() *check.Cluster {
	c := healthy("eu", "us")
	c.Control.Value, c.Control.Err = nil, errors.New("not installed")
	c.Kube.StatefulSets.Value, c.Kube.DaemonSets.Value, c.Kube.Services.Value, c.Kube.CRDs.Value = nil, nil, nil, nil
	c.Kube.Corefile.Value = ".:53 {\n}\n"
	return c
}

// found says of each result that is not ok what it is.
func found(results []check.Result) []string {
	var out []string
	for _, r := range results {
		if r.Status != check.OK {
			out = append(out, strings.TrimSpace(r.ID+" "+string(r.Status)+" "+strings.Join(r.Found, "; ")))
		}
	}
	return out
}

func TestHealthy(t *testing.T) {
	all := check.Judge([]*check.Cluster{healthy("eu", "us"), healthy("us", "eu")}, false)
	if f := found(all); len(f) > 0 {
		t.Errorf("not ok: %q", f)
	}
	if f := found(check.Judge([]*check.Cluster{bare()}, false)); len(f) > 0 {
		t.Errorf("not ok, before: %q", f)
	}
	// Each check is made somewhere, or it is none.
	made := map[string]bool{}
	for _, r := range slices.Concat(all, check.Judge([]*check.Cluster{bare()}, true)) {
		made[r.ID] = true
	}
	for _, c := range check.All() {
		if !made[c.ID] {
			t.Errorf("%s is never made", c.ID)
		}
	}
}

func TestFaultsAreFound(t *testing.T) {
	no := errors.New("no")
	for want, breaks := range map[string]func(c *check.Cluster){
		"IST7001 failed Kubernetes v1.29.1": func(c *check.Cluster) {
			c.Kube.APIVersion.Value = &version.Info{Major: "1", Minor: "29", GitVersion: "v1.29.1"}
		},
		"IST7001 unknown could not look: no": func(c *check.Cluster) { c.Kube.APIVersion.Err = no },
		"IST7003 failed serviceimports.multicluster.x-k8s.io, of submariner, serves v1alpha1, not v1beta1": func(c *check.Cluster) {
			c.Kube.CRDs.Value[5].Served, c.Kube.CRDs.Value[5].Owner = []string{"v1alpha1"}, "submariner"
		},
		"IST7003 failed 3 of the 6 kinds are missing":                       func(c *check.Cluster) { c.Kube.CRDs.Value = c.Kube.CRDs.Value[:3] },
		"IST7004 failed n1 is linux/s390x":                                  func(c *check.Cluster) { c.Kube.Nodes.Value[0].Status.NodeInfo.Architecture = "s390x" },
		"IST7004 failed n1 has Linux 4.18.0-305.el8":                        func(c *check.Cluster) { c.Kube.Nodes.Value[0].Status.NodeInfo.KernelVersion = "4.18.0-305.el8" },
		"IST7007 failed 241.0.0.0/8 overlaps with 241.5.0.0/16 of Services": func(c *check.Cluster) { c.Kube.ServiceCIDRs.Value = []string{"241.5.0.0/16"} },
		"IST7007 failed 241.0.0.0/8 overlaps with 241.1.2.3 of node n1": func(c *check.Cluster) {
			c.Kube.Nodes.Value[0].Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "241.1.2.3"}}
		},
		"IST7008 warning Istio puts sidecars in too (MutatingWebhookConfiguration istio-sidecar-injector)": func(c *check.Cluster) {
			c.Kube.Webhooks.Value = append(c.Kube.Webhooks.Value, admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: meta("", "istio-sidecar-injector")})
		},
		"IST7009 failed namespace isthmus-system enforces restricted": func(c *check.Cluster) {
			c.Kube.Namespaces.Value[0].Labels["pod-security.kubernetes.io/enforce"] = "restricted"
		},
		"IST7101 failed it waits for bus: not listening": func(c *check.Cluster) {
			c.Control.Value.Status.Ready, c.Control.Value.Status.Missing = false, []string{"bus: not listening"}
		},
		"IST7102 failed 1 of 2 are ready":                 func(c *check.Cluster) { c.Kube.StatefulSets.Value[1].Status.ReadyReplicas = 1 },
		"IST7102 failed g1 is not connected with control": func(c *check.Cluster) { c.Control.Value.Status.Proxies[1].Connected = false },
		"IST7103 failed none on n1":                       func(c *check.Cluster) { c.Kube.Pods.Value[0].Spec.NodeName = "n0" },
		"IST7103 failed isthmus-node-x on n1 captures nothing: its container capture does not run": func(c *check.Cluster) {
			c.Kube.Pods.Value[0].Status.ContainerStatuses[0].State = corev1.ContainerState{}
		},
		"IST7103 skipped node.enabled is false":                                          func(c *check.Cluster) { c.Kube.DaemonSets.Value = nil },
		"IST7104 warning 1 x gateway v0, control is v1":                                  func(c *check.Cluster) { c.Control.Value.Status.Proxies[0].Version = "v0" },
		"IST7104 warning control is v1, this is v2":                                      func(c *check.Cluster) { c.Version = "v2" },
		"IST7105 failed a Pod that asks for a sidecar gets none":                         func(c *check.Cluster) { c.Kube.Injected.Value = false },
		"IST7105 failed the caBundle of  is not what ConfigMap isthmus-trust-bundle has": func(c *check.Cluster) { c.Kube.TrustBundle.Value = certificate("new") },
		"IST7105 failed a Pod that asks for a sidecar can't be made: no":                 func(c *check.Cluster) { c.Kube.Injected.Err = no },
		"IST7106 failed its Corefile has no block of ours":                               func(c *check.Cluster) { c.Kube.Corefile.Value = ".:53 {\n}\n" },
		"IST7106 failed its Corefile does not forward to 10.96.0.7": func(c *check.Cluster) {
			c.Kube.Corefile.Value = strings.ReplaceAll(c.Kube.Corefile.Value, "0.7", "0.77")
		},
		"IST7107 failed dns-version.clusterset.local has no answer: no such host": func(c *check.Cluster) {
			c.Kube.DNS.Value = check.Probe{Error: "no such host"}
		},
		"IST7108 failed shop: web": func(c *check.Cluster) { c.Kube.Pods.Value[1].Annotations = nil },
		"IST7109 failed Service shop/x: bad": func(c *check.Cluster) {
			c.Control.Value.Status.Manifests.Problems = []admin.Problem{{Object: "Service shop/x", Reason: "bad"}}
		},
		"IST7110 failed shop/web: NoService: there is none": func(c *check.Cluster) {
			c.Control.Value.Exports[0].Conditions[0] = admin.Condition{Type: "Valid", Status: "False", Reason: "NoService", Message: "there is none"}
		},
		"IST7111 warning there is none: isthmus peer invite": func(c *check.Cluster) { c.Control.Value.Status.Peers, c.Control.Value.Status.Links = nil, nil },
		"IST7112 failed g1 to us is down refused": func(c *check.Cluster) {
			c.Control.Value.Status.Links[1].State, c.Control.Value.Status.Links[1].Detail = "down", "refused"
		},
		"IST7112 failed no gateway speaks of a link to us": func(c *check.Cluster) { c.Control.Value.Status.Links = nil },
		"IST7113 warning the root ends 2026-01-12": func(c *check.Cluster) {
			c.Control.Value.Status.RootExpires = c.Control.Value.Status.Now.AddDate(0, 0, 10)
		},
		"IST7115 warning the issuing CA ends in 15h (2026-01-02T18:04:05Z), and was not renewed": func(c *check.Cluster) {
			c.Control.Value.Trust.Value.Authority.Issuing.NotAfter = c.Control.Value.Status.Now.Add(15 * time.Hour)
			c.Control.Value.Trust.Value.Authority.Issuing.NotBefore = c.Control.Value.Status.Now.Add(-33 * time.Hour)
		},
		"IST7115 failed the SVID of gateway g0 ends in 9m (2026-01-02T03:13:05Z), and was not renewed; the last root of us.test ends in 25d (2026-01-27T03:04:05Z), and was not renewed": func(c *check.Cluster) {
			c.Control.Value.Status.Proxies[0].SVIDEnds = c.Control.Value.Status.Now.Add(9 * time.Minute)
			c.Control.Value.Status.Proxies[1].SVIDEnds = c.Control.Value.Status.Now.Add(29 * time.Minute)
			root := &c.Control.Value.Trust.Value.Domains[1].Roots[0]
			root.NotBefore, root.NotAfter = root.NotBefore.AddDate(0, 0, -55), root.NotAfter.AddDate(0, 0, -55)
		},
		"IST7115 failed the federation's member root ended 2026-01-02T03:04:04Z; the root of eu.test that signs ends in 14d (2026-01-16T03:04:05Z), and was not renewed": func(c *check.Cluster) {
			tr, now := c.Control.Value.Trust.Value, c.Control.Value.Status.Now
			tr.MemberRoot.NotAfter = now.Add(-time.Second)
			next := tr.Domains[0].Roots[0]
			next.State = "next"
			tr.Domains[0].Roots[0].NotBefore, tr.Domains[0].Roots[0].NotAfter = now.AddDate(0, 0, -76), now.AddDate(0, 0, 14)
			tr.Domains[0].Roots = append(tr.Domains[0].Roots, next)
		},
		"IST7115 failed the authority: no space left on device": func(c *check.Cluster) {
			c.Control.Value.Trust.Value.Authority.Problem = "no space left on device"
		},
		"IST7116 warning the next root is published for 20m, and held: cluster us: is Stale": func(c *check.Cluster) {
			c.Control.Value.Trust.Value.Rotation = admin.Rotation{
				Phase: admin.RotationPublished, Since: c.Control.Value.Status.Now.Add(-20 * time.Minute), Holds: []string{"cluster us: is Stale"},
			}
		},
		"IST7116 failed the next root is published for 2d, and held: a; b; c; d; e; and 1 more": func(c *check.Cluster) {
			c.Control.Value.Trust.Value.Rotation = admin.Rotation{
				Phase: admin.RotationPublished, Since: c.Control.Value.Status.Now.Add(-50 * time.Hour), Holds: []string{"a", "b", "c", "d", "e", "f"},
			}
		},
		"IST7117 warning us.test since 2026-01-02T03:04:05Z: its key was copied": func(c *check.Cluster) {
			now := c.Control.Value.Status.Now
			c.Control.Value.Trust.Value.Revocations = []admin.Revocation{
				{Subject: "us.test", Kind: "domain", At: now, Reason: "its key was copied"},
				{Subject: "sha256:x", Kind: "key", At: now, Ends: now.Add(time.Hour)},
				{Subject: "sha256:y", Kind: "key", At: now},
				{Subject: "spiffe://other.test/x", Kind: "id", At: now}, // they harm nobody by staying
			}
		},
		"IST7118 failed eu.test and us.test both have the root sha256:eu": func(c *check.Cluster) {
			c.Control.Value.Trust.Value.Domains[1].Roots[0].KeyID = "sha256:eu"
		},
		`IST7119 warning namespace shop has "yes"; Pod shop/web has "enabled"`: func(c *check.Cluster) {
			c.Kube.Namespaces.Value[1].Labels["isthmus.dev/inject"] = "yes"
			c.Kube.Pods.Value[1].Labels["isthmus.dev/inject"] = "enabled"
		},
		"IST7114 warning 6s behind": func(c *check.Cluster) { c.Control.Value.Ahead = -6 * time.Second },
	} {
		c := healthy("eu", "us")
		breaks(c)
		if got := found(check.Judge([]*check.Cluster{c}, false)); !slices.Equal(got, []string{want}) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for want, breaks := range map[string]func(c *check.Cluster){
		"IST7002 failed you may not create secrets in isthmus-system": func(c *check.Cluster) { c.Kube.Denied.Value = []string{"create secrets in isthmus-system"} },
		"IST7005 failed 30422/TCP is that of Service shop/web": func(c *check.Cluster) {
			c.Kube.Services.Value = []corev1.Service{{ObjectMeta: meta("shop", "web"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{NodePort: 30422}, {NodePort: 30750}}}}}
		},
		"IST7005 failed 30743/TCP is that of Service shop/db": func(c *check.Cluster) {
			c.Kube.Services.Value = []corev1.Service{{ObjectMeta: meta("shop", "db"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{NodePort: 30743}}}}}
		},
		"IST7005 failed not in the valid range":                                             func(c *check.Cluster) { c.Kube.NodePort.Value = "not in the valid range" },
		"IST7006 failed its ConfigMap has no Corefile":                                      func(c *check.Cluster) { c.Kube.Corefile.Value = "" },
		"IST7006 warning it serves clusterset.local already, by a block of somebody else's": func(c *check.Cluster) { c.Kube.Corefile.Value = "clusterset.local:53 {\n}\n" },
	} {
		c := bare()
		breaks(c)
		if got := found(check.Judge([]*check.Cluster{c}, true)); !slices.Equal(got, []string{want}) {
			t.Errorf("before: got %q, want %q", got, want)
		}
	}
}

// TestDeadControl: what only control could say is unknown because of one check, which says why.
func TestDeadControl(t *testing.T) {
	c := healthy("eu", "us")
	c.Control.Value, c.Control.Err = nil, errors.New("CrashLoopBackOff")
	for _, r := range check.Judge([]*check.Cluster{c}, false) {
		switch {
		case r.ID == "IST7101" && r.Status == check.Failed && r.Found[0] == "CrashLoopBackOff":
		case r.Status == check.Unknown && r.Because == "IST7101", r.Status == check.OK:
		default:
			t.Errorf("%+v", r)
		}
	}
}

// A peer that is revoked is called that, and no firewall is suspected.
func TestRevokedPeer(t *testing.T) {
	c := healthy("eu", "us")
	status := c.Control.Value.Status
	for i := range status.Peers {
		status.Peers[i].State, status.Peers[i].Reason = "Revoked", "its key was copied"
	}
	for i := range status.Links {
		status.Links[i].State = "down"
	}
	want := "IST7112 failed us is revoked here, and no link to it is let stand: its key was copied (isthmus trust revoke us --undo)"
	if got := found(check.Judge([]*check.Cluster{c}, false)); !slices.Contains(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestBetween(t *testing.T) {
	for want, breaks := range map[string]func(eu, us *check.Control){
		"IST7201 failed kind-eu and kind-us both have the trust domain eu.test": func(_, us *check.Control) { us.Status.TrustDomain = "eu.test" },
		"IST7201 failed kind-eu and kind-us both have the bus key key of eu":    func(_, us *check.Control) { us.Introduction.BusKey = "key of eu" },
		"IST7202 warning 242.0.0.0/8 in us, 241.0.0.0/8 in eu":                  func(_, us *check.Control) { us.Status.ClusterSetCIDR = "242.0.0.0/8" },
		"IST7203 failed us to eu: Revoked there: its key was copied (isthmus trust revoke eu --undo)": func(_, us *check.Control) {
			us.Status.Peers[0].State, us.Status.Peers[0].Reason = "Revoked", "its key was copied"
		},
		"IST7203 failed us to eu: no link: it is revoked in eu": func(eu, us *check.Control) {
			us.Status.Links = nil
			eu.Status.Peers = append(eu.Status.Peers, admin.Peer{Cluster: "us", State: "Revoked"})
		},
		"IST7203 failed us to eu: another cluster of its name is let in (fingerprint)": func(_, us *check.Control) { us.Status.Peers[0].RootFingerprint = "of old eu" },
		"IST7204 failed us is 1m0s ahead of eu":                                        func(eu, us *check.Control) { eu.Ahead, us.Ahead = 1*time.Second, 61*time.Second },
		"IST7204 warning us is 6s behind of eu":                                        func(eu, us *check.Control) { eu.Ahead, us.Ahead = 3*time.Second, -3*time.Second },
		"IST7206 warning eu trusts us, which does not trust it":                        func(_, us *check.Control) { us.Trust.Value.Domains[1].State = "Revoked" },
		"IST7206 warning us has an older bundle of eu than that has itself":            func(eu, _ *check.Control) { eu.Trust.Value.Domains[0].Sequence++ },
		"IST7205 warning us has v2, eu has v1":                                         func(_, us *check.Control) { us.Status.Version = "v2" },
	} {
		eu, us := healthy("eu", "us"), healthy("us", "eu")
		breaks(eu.Control.Value, us.Control.Value)
		got := slices.DeleteFunc(found(check.Judge([]*check.Cluster{eu, us}, false)), func(s string) bool { return !strings.HasPrefix(s, "IST72") })
		if !slices.Equal(got, []string{want}) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A control that does not know of trust yet is no failure; one that can't tell is unknown.
func TestOldControl(t *testing.T) {
	for want, trust := range map[string]check.Seen[*admin.Trust]{
		"skipped": {}, "unknown": {Err: errors.New("HTTP 500")},
	} {
		c := healthy("eu", "us")
		c.Control.Value.Trust = trust
		for _, f := range found(check.Judge([]*check.Cluster{c}, false)) {
			if !strings.HasPrefix(f, "IST711") || !strings.Contains(f, want) {
				t.Errorf("got %q, want %q", f, want)
			}
		}
	}
}

func TestReach(t *testing.T) {
	eu, us, ap := healthy("eu", "us"), healthy("us", "eu"), healthy("ap", "eu")
	us.Control.Value.Status.Peers = append(us.Control.Value.Status.Peers, admin.Peer{Cluster: "ap", State: "Stale", Reason: "no newer head has come"})
	ap.Control.Value.Status.Links = nil
	var got [][]string
	for _, row := range check.Reach([]*check.Cluster{eu, us, ap}) {
		var cells []string
		for _, r := range row {
			cells = append(cells, r.How)
		}
		got = append(got, cells)
	}
	want := [][]string{
		{"-", "ok 1ms", "not let in"},
		{"ok 1ms", "-", "Stale no newer head has come"},
		{"no link", "not let in", "-"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestChecksAreWhole(t *testing.T) {
	id := regexp.MustCompile(`^IST7[012]\d\d$`)
	seen := map[string]bool{}
	for _, c := range check.All() {
		if !id.MatchString(c.ID) || seen[c.ID] || c.Title == "" || c.Expected == "" || c.Fix == "" {
			t.Errorf("incomplete, or twice: %+v", c)
		}
		seen[c.ID] = true
	}
	if c, ok := check.Lookup("ist7103"); !ok || c.ID != "IST7103" {
		t.Errorf("lookup: %+v %v", c, ok)
	}
}

// TestControlAway: what only control could say is not known without it, and no fault.
func TestControlAway(t *testing.T) {
	c := healthy("eu", "us")
	c.Kube, c.Control.Value, c.Control.Err = nil, nil, errors.New("no")
	if got := found(check.Judge([]*check.Cluster{c}, false)); !slices.Contains(got, "IST7102 unknown control does not answer: see IST7101") {
		t.Errorf("got %q", got)
	}
}
