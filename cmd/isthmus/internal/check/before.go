package check

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	oldestMinor = 30 // of Kubernetes 1
	mcsVersion  = "v1beta1"
)

var architectures = []string{"amd64", "arm64"}

// oldestKernel has what the capture is made of: NAT in nftables' family inet came with Linux 5.2.
var oldestKernel = [2]int{5, 2}

// mcsCRDs may be somebody else's; isthmusCRDs may not.
var (
	mcsCRDs     = []string{"serviceexports.multicluster.x-k8s.io", "serviceimports.multicluster.x-k8s.io"}
	isthmusCRDs = []string{"clusterpeers.isthmus.dev", "failoverpolicies.isthmus.dev", "federatedtrustdomains.isthmus.dev", "workloads.isthmus.dev"}
)

// otherMeshes are known by the webhooks that put their sidecars in, or by the controllers that write ServiceImports.
var otherMeshes = []struct{ prefix, name string }{
	{"istio-", "Istio"}, {"linkerd-proxy-injector", "Linkerd"}, {"consul-", "Consul"}, {"kuma-", "Kuma"},
}

var otherImporters = []string{"submariner-lighthouse-agent", "mcs-api-controller", "cilium-clustermesh-mcs"}

// inOne are the checks of one cluster.
var inOne = []one{
	{
		Check{
			"IST7001", "The API server", "it answers, and is Kubernetes 1.30 or later",
			"Look at the context (kubectl config get-contexts) and at the way to the API server; upgrade an older cluster.",
		}, always, true, func(c *Cluster) verdict {
			v := c.Kube.APIVersion
			if v.Err != nil {
				return unknown(v.Err)
			}
			major, minor := v.Value.Major, strings.TrimRight(v.Value.Minor, "+")
			n, err := strconv.Atoi(minor)
			if err != nil || major == "1" && n < oldestMinor {
				return failed("Kubernetes " + v.Value.GitVersion)
			}
			return ok("Kubernetes " + v.Value.GitVersion)
		},
	},
	{
		Check{
			"IST7002", "Permissions to install", "you may create and change what an installation writes",
			"Install as somebody with the ClusterRole cluster-admin, or have a role made that allows what is listed.",
		}, before, true, func(c *Cluster) verdict {
			d := c.Kube.Denied
			if d.Err != nil {
				return unknown(d.Err)
			}
			return faults(prefixed("you may not ", d.Value))
		},
	},
	{
		Check{
			"IST7003", "Kinds", "the kinds of the Multi-Cluster Services API are served as v1beta1; no other mesh of this name is there",
			"Upgrade whoever brought the CRD, or apply the CRDs of sigs.k8s.io/mcs-api v0.5. \"isthmus install\" brings those that are missing.",
		}, always, true, judgeCRDs,
	},
	{
		Check{
			"IST7004", "Nodes", "Linux 5.2 or later on amd64 or arm64",
			"Leave other nodes out with node.nodeSelector; workloads on them stay outside the mesh.",
		}, always, true, judgeNodes,
	},
	{
		Check{
			"IST7005", "Node ports", "30422/TCP, 30743 and 30744, both UDP and TCP, are free, and in the API server's range",
			"Choose others: bus.service.nodePort and gateway.service.nodePortBase; or Services of type LoadBalancer.",
		}, before, true, judgeNodePorts,
	},
	{
		Check{
			"IST7006", "CoreDNS", "kube-system/coredns has a Corefile that \"isthmus install\" can put a stub into",
			"Set dns.coredns to false, and have your DNS forward clusterset.local to the ClusterIP of isthmus-dns.",
		}, before, true, func(c *Cluster) verdict {
			switch f := c.Kube.Corefile; {
			case f.Err != nil:
				return unknown(f.Err)
			case strings.TrimSpace(f.Value) == "":
				return failed("its ConfigMap has no Corefile")
			case strings.Contains(f.Value, "clusterset.local") && !strings.Contains(f.Value, stubBegin):
				return warning("it serves clusterset.local already, by a block of somebody else's")
			default:
				return ok()
			}
		},
	},
	{
		Check{
			"IST7007", "Addresses of imports", "clusterSetCIDR overlaps with nothing that Pods, Services or nodes are given",
			"Choose another clusterSetCIDR; nothing else may use it, and it needs no route.",
		}, always, true, judgeCIDR,
	},
	{
		Check{
			"IST7008", "Other meshes", "nobody else takes Pods' connections, or writes ServiceImports",
			"Have no Pod injected by both; take the other controller of ServiceImports out.",
		}, always, true, judgeOthers,
	},
	{
		Check{
			"IST7009", "Pod Security", "the namespace of Isthmus admits node proxies: they are in the host's network, and the capture has NET_ADMIN",
			"kubectl label namespace isthmus-system pod-security.kubernetes.io/enforce=privileged --overwrite",
		}, always, true, func(c *Cluster) verdict {
			if c.Kube.Namespaces.Err != nil {
				return unknown(c.Kube.Namespaces.Err)
			}
			for i := range c.Kube.Namespaces.Value {
				n := &c.Kube.Namespaces.Value[i]
				level := n.Labels["pod-security.kubernetes.io/enforce"]
				if n.Name == c.Kube.Namespace && level != "" && level != "privileged" {
					return failed(sprintf("namespace %s enforces %s", n.Name, level))
				}
			}
			return ok()
		},
	},

	afterControl, afterGateways, afterNodes, afterVersions, afterWebhook, afterStub, afterDNS, afterBare, afterFindings, afterExports,
	afterPeers, afterLinks, afterCertificates, afterClock,
	afterExpiry, afterRotation, afterRevocations, afterRoots, afterLabels,
}

func prefixed(prefix string, in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = prefix + s
	}
	return out
}

func judgeCRDs(c *Cluster) verdict {
	if c.Kube.CRDs.Err != nil {
		return unknown(c.Kube.CRDs.Err)
	}
	var found []string
	there := 0
	for _, crd := range c.Kube.CRDs.Value {
		if slices.Contains(isthmusCRDs, crd.Name) || slices.Contains(mcsCRDs, crd.Name) {
			there++
		}
		if slices.Contains(mcsCRDs, crd.Name) && !slices.Contains(crd.Served, mcsVersion) {
			found = append(found, sprintf("%s, of %s, serves %s, not %s", crd.Name, cmp.Or(crd.Owner, "somebody"), strings.Join(crd.Served, ", "), mcsVersion))
		}
	}
	if missing := len(isthmusCRDs) + len(mcsCRDs) - there; c.Kube.Installed() && missing > 0 {
		found = append(found, sprintf("%d of the %d kinds are missing", missing, len(isthmusCRDs)+len(mcsCRDs)))
	}
	return faults(found)
}

func judgeNodes(c *Cluster) verdict {
	if c.Kube.Nodes.Err != nil {
		return unknown(c.Kube.Nodes.Err)
	}
	var found []string
	for i := range c.Kube.Nodes.Value {
		n := &c.Kube.Nodes.Value[i]
		info := n.Status.NodeInfo
		if info.OperatingSystem != "linux" || !slices.Contains(architectures, info.Architecture) {
			found = append(found, sprintf("%s is %s/%s", n.Name, info.OperatingSystem, info.Architecture))
			continue
		}
		var version [2]int
		if _, err := fmt.Sscanf(info.KernelVersion, "%d.%d", &version[0], &version[1]); err == nil && slices.Compare(version[:], oldestKernel[:]) < 0 {
			found = append(found, sprintf("%s has Linux %s", n.Name, info.KernelVersion))
		}
	}
	switch nodes := len(c.Kube.Nodes.Value); {
	case nodes == 0:
		return failed("there is none")
	case len(found) == nodes:
		return failed(found...)
	case len(found) > 0:
		return warning(found...)
	default:
		return ok(sprintf("%d", nodes))
	}
}

func judgeNodePorts(c *Cluster) verdict {
	if c.Kube.Services.Err != nil {
		return unknown(c.Kube.Services.Err)
	}
	var found []string
	for i := range c.Kube.Services.Value {
		s := &c.Kube.Services.Value[i]
		if s.Labels["app.kubernetes.io/name"] == "isthmus" {
			continue
		}
		for _, p := range s.Spec.Ports {
			bus := p.NodePort == busNodePort && p.Protocol != corev1.ProtocolUDP
			gateway := p.NodePort >= gatewayPorts && p.NodePort < gatewayPorts+gatewayCount && p.Protocol != corev1.ProtocolSCTP
			if bus || gateway {
				found = append(found, sprintf("%d/%s is that of Service %s/%s", p.NodePort, cmp.Or(p.Protocol, corev1.ProtocolTCP), s.Namespace, s.Name))
			}
		}
	}
	switch n := c.Kube.NodePort; {
	case len(found) > 0:
		return failed(found...)
	case n.Err != nil:
		return unknown(n.Err)
	case n.Value != "":
		return failed(n.Value)
	default:
		return ok()
	}
}

// judgeCIDR compares clusterSetCIDR with all that is given out.
func judgeCIDR(c *Cluster) verdict {
	k := c.Kube
	want, err := netip.ParsePrefix(k.CIDR)
	if err != nil {
		return failed(sprintf("clusterSetCIDR %q is none", k.CIDR))
	}
	for _, err := range []error{k.Nodes.Err, k.ServiceCIDRs.Err} {
		if err != nil {
			return unknown(err)
		}
	}
	taken := map[string]string{}
	for i := range k.Nodes.Value {
		n := &k.Nodes.Value[i]
		for _, cidr := range n.Spec.PodCIDRs {
			taken[cidr] = "Pods of node " + n.Name
		}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
				taken[a.Address] = "node " + n.Name
			}
		}
	}
	for _, cidr := range k.ServiceCIDRs.Value {
		taken[cidr] = "Services"
	}
	var found []string
	for text, whose := range taken {
		other, err := netip.ParsePrefix(text)
		if a, isAddress := netip.ParseAddr(text); isAddress == nil {
			other, err = a.Prefix(a.BitLen())
		}
		if err == nil && want.Overlaps(other) {
			found = append(found, sprintf("%s overlaps with %s of %s", k.CIDR, text, whose))
		}
	}
	slices.Sort(found)
	return faults(found, k.CIDR)
}

func judgeOthers(c *Cluster) verdict {
	for _, err := range []error{c.Kube.Webhooks.Err, c.Kube.Deployments.Err} {
		if err != nil {
			return unknown(err)
		}
	}
	var found []string
	for i := range c.Kube.Webhooks.Value {
		name := c.Kube.Webhooks.Value[i].Name
		for _, m := range otherMeshes {
			if strings.HasPrefix(name, m.prefix) {
				found = append(found, sprintf("%s puts sidecars in too (MutatingWebhookConfiguration %s)", m.name, name))
			}
		}
	}
	for i := range c.Kube.Deployments.Value {
		if d := &c.Kube.Deployments.Value[i]; slices.Contains(otherImporters, d.Name) {
			found = append(found, sprintf("Deployment %s/%s writes ServiceImports too", d.Namespace, d.Name))
		}
	}
	if len(found) > 0 {
		return warning(found...)
	}
	return ok()
}
