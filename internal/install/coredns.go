package install

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The stub in the Corefile of kube-system/coredns. What is between the marks, and they, are ours; everything else stays as it is,
// byte by byte.
const (
	stubBegin = "# isthmus begin"
	stubEnd   = "# isthmus end"
	corefile  = "Corefile"
)

// stub is the block that has CoreDNS ask the node proxies for clusterset.local. joined tells Remove to take out the line break that Add
// had to put before it.
//
// Node proxies answer over UDP with no more than 512 bytes. prefer_udp: of what is longer CoreDNS itself asks over TCP, so that also clients that
// can't ask again over TCP are told as much as they take; otherwise it would hand on the empty answer.
func stub(dns string, joined bool) string {
	begin := stubBegin
	if joined {
		begin += " (after a line break of its own)"
	}
	return begin + "\nclusterset.local:53 {\n    errors\n    cache 5\n    forward . " + dns + " {\n        prefer_udp\n    }\n}\n" + stubEnd + "\n"
}

// addStub returns the Corefile with the block at its end, in place of one that is there.
func addStub(text, dns string) (string, error) {
	bare, err := removeStub(text)
	if err != nil {
		return "", err
	}
	if zone, there := foreignZone(bare); there {
		return "", fmt.Errorf("its Corefile has a block for %s already that is not ours: take it out, or set dns.coredns to false and have it forward to %s", zone, dns)
	}
	if bare != "" && !strings.HasSuffix(bare, "\n") {
		return bare + "\n" + stub(dns, true), nil
	}
	return bare + stub(dns, false), nil
}

// removeStub returns the Corefile as it was before the block came in.
func removeStub(text string) (string, error) {
	before, block, ok := strings.Cut(text, stubBegin)
	if !ok {
		return text, nil
	}
	block, after, ok := strings.Cut(block, stubEnd)
	if !ok {
		return "", fmt.Errorf("its Corefile has %q and no %q after it: somebody changed the block; take it out by hand", stubBegin, stubEnd)
	}
	after = strings.TrimPrefix(after, "\n")
	if !strings.HasPrefix(block, "\n") { // it says that it came with a line break
		before = strings.TrimSuffix(before, "\n")
	}
	if strings.Contains(after, stubBegin) {
		return "", fmt.Errorf("its Corefile has %q twice; take one block out by hand", stubBegin)
	}
	return before + after, nil
}

// foreignZone returns the zone of a server block for clusterset.local.
func foreignZone(text string) (string, bool) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || !strings.HasSuffix(line, "{") {
			continue
		}
		for zone := range strings.FieldsSeq(strings.ReplaceAll(strings.TrimSuffix(line, "{"), ",", " ")) {
			name, _, _ := strings.Cut(strings.TrimPrefix(zone, "dns://"), ":")
			if strings.TrimSuffix(name, ".") == "clusterset.local" {
				return zone, true
			}
		}
	}
	return "", false
}

// DNSError is a cluster whose DNS is not what we know how to set up.
type DNSError struct{ what string }

// Error says what there is, and what to do.
func (d *DNSError) Error() string {
	return d.what + ". Have the cluster's DNS forward the zone clusterset.local to the ClusterIP of Service isthmus-dns, and install with --set dns.coredns=false"
}

// coreDNS returns the ConfigMap of CoreDNS as kubeadm, kind and most distributions have it.
func (e *Engine) coreDNS(ctx context.Context) (*corev1.ConfigMap, error) {
	m, err := e.kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "coredns", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		what := "there is no ConfigMap kube-system/coredns"
		if _, none := e.kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, "kube-dns", metav1.GetOptions{}); none == nil {
			what = "the cluster's DNS is kube-dns (its stub domains are in ConfigMap kube-system/kube-dns)"
		} else if list, none := e.kube.CoreV1().ConfigMaps("openshift-dns").List(ctx, metav1.ListOptions{Limit: 1}); none == nil && len(list.Items) > 0 {
			what = "the cluster's DNS is OpenShift's (its forwarding is in dns.operator/default)"
		}
		return nil, &DNSError{what}
	}
	if err != nil {
		return nil, fmt.Errorf("ConfigMap kube-system/coredns: %w", err)
	}
	if _, ok := m.Data[corefile]; !ok {
		return nil, &DNSError{"ConfigMap kube-system/coredns has no Corefile"}
	}
	if who := m.Labels["addonmanager.kubernetes.io/mode"]; who == "Reconcile" {
		return nil, &DNSError{"an addon manager puts ConfigMap kube-system/coredns back when it is changed"}
	}
	return m, nil
}

// setStub puts the block into CoreDNS, and reports whether something changed.
func (e *Engine) setStub(ctx context.Context) (bool, error) {
	service, err := e.kube.CoreV1().Services(e.Namespace).Get(ctx, "isthmus-dns", metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("service %s/isthmus-dns: %w", e.Namespace, err)
	}
	ip := net.ParseIP(service.Spec.ClusterIP)
	if ip == nil {
		return false, fmt.Errorf("service %s/isthmus-dns has no ClusterIP", e.Namespace)
	}
	return e.editCorefile(ctx, func(text string) (string, error) { return addStub(text, ip.String()) })
}

// clearStub takes it out again.
func (e *Engine) clearStub(ctx context.Context) (bool, error) {
	changed, err := e.editCorefile(ctx, removeStub)
	if none := (*DNSError)(nil); errors.As(err, &none) {
		return false, nil // nor did we change it
	}
	return changed, err
}

func (e *Engine) editCorefile(ctx context.Context, edit func(string) (string, error)) (bool, error) {
	for {
		m, err := e.coreDNS(ctx)
		if err != nil {
			return false, err
		}
		text, err := edit(m.Data[corefile])
		if err != nil {
			return false, fmt.Errorf("ConfigMap kube-system/coredns: %w", err)
		}
		if text == m.Data[corefile] {
			return false, nil
		}
		m.Data[corefile] = text
		_, err = e.kube.CoreV1().ConfigMaps(m.Namespace).Update(ctx, m, metav1.UpdateOptions{FieldManager: managedByInstaller})
		if apierrors.IsConflict(err) && ctx.Err() == nil {
			continue // somebody wrote in between: edit what they wrote
		}
		if err != nil {
			return false, fmt.Errorf("ConfigMap kube-system/coredns: %w", err)
		}
		return true, nil
	}
}
