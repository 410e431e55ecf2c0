package install

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// dnsSelector picks CoreDNS's Pods, whoever installed it: kubeadm, kind, and the clouds keep kube-dns's label.
	dnsSelector = "k8s-app=kube-dns"
	// dnsPoll is how often it is looked whether CoreDNS is whole again.
	dnsPoll = 250 * time.Millisecond
	// dnsPatience bounds the wait for one Pod.
	dnsPatience = time.Minute
)

// rereadCorefile makes CoreDNS read what was changed now: the kubelet and CoreDNS would take two minutes, in which nobody finds a name of
// clusterset.local. Its Pods are evicted one after the other, each when all others serve, so that DNS stays up where there are two; the
// Deployment is not touched. What forbids that (a budget, a right that is missing) is no error: then it takes the two minutes.
func (e *Engine) rereadCorefile(ctx context.Context) error {
	pods := e.kube.CoreV1().Pods(metav1.NamespaceSystem)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: dnsSelector})
	if err != nil {
		return fmt.Errorf("pods of CoreDNS: %w", err)
	}
	for i := range list.Items {
		p := &list.Items[i]
		err := pods.EvictV1(ctx, &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))},
		})
		switch {
		case apierrors.IsNotFound(err), apierrors.IsConflict(err): // it went by itself: another one has taken its place
		case apierrors.IsTooManyRequests(err), apierrors.IsForbidden(err):
			e.say("note: CoreDNS could not be started anew (%v): it finds names of clusterset.local within two minutes", err)
			return nil
		case err != nil:
			return fmt.Errorf("pod %s of CoreDNS: %w", p.Name, err)
		}
		if whole, err := e.dnsWhole(ctx, p.Name, len(list.Items)); err != nil {
			return err
		} else if !whole {
			e.say("note: Pod %s of CoreDNS was started anew, and nothing has taken its place yet: kubectl -n kube-system get pods -l %s", p.Name, dnsSelector)
			return nil
		}
	}
	return nil
}

// dnsWhole waits until as many Pods of CoreDNS serve as before, without the one that went; false: they took too long.
func (e *Engine) dnsWhole(ctx context.Context, gone string, want int) (bool, error) {
	end := time.Now().Add(dnsPatience)
	for {
		list, err := e.kube.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: dnsSelector})
		if err != nil {
			return false, fmt.Errorf("pods of CoreDNS: %w", err)
		}
		serving := 0
		for i := range list.Items {
			if p := &list.Items[i]; p.Name != gone && p.DeletionTimestamp == nil && isReady(p) {
				serving++
			}
		}
		if serving >= want {
			return true, nil
		}
		if time.Now().After(end) {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(dnsPoll):
		}
	}
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
