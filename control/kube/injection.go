package kube

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/inject"
)

// lookAround is how often the injection looks whether all is as it should be. Nothing in it is urgent: the trust domain's roots are known
// for weeks before they are used.
const lookAround = 5 * time.Second

// webhookKind is how problems call the configuration of the webhook.
const webhookKind = "MutatingWebhookConfiguration"

// injection keeps the webhook's configuration right, and finds Pods that have no sidecar and should.
type injection struct {
	cfg    Config
	reads  client.Reader // the caches
	writes client.Client
	found  func([]control.Problem)

	kept error // of run's goroutine: why the configuration could not be kept last time
}

// run looks around until ctx ends. Every kind must have been read before.
func (i *injection) run(ctx context.Context) {
	for {
		var problems []control.Problem
		if i.cfg.Webhook != "" {
			problems = append(problems, i.keepWebhook(ctx)...)
		}
		bare, err := i.bare(ctx)
		if err != nil && ctx.Err() == nil {
			i.cfg.Log.ErrorContext(ctx, "caches not read", "error", err) // fails only where this program is wrong
		}
		i.found(append(problems, bare...))
		if !pause(ctx, lookAround) {
			return
		}
	}
}

// keepWebhook puts the trust domain's roots into the webhook's configuration: the API server knows control by them.
func (i *injection) keepWebhook(ctx context.Context) []control.Problem {
	roots := i.cfg.Roots()
	if len(roots) == 0 {
		return nil // control is about to begin
	}
	bounded, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	problem := func(format string, args ...any) []control.Problem {
		return []control.Problem{{Object: object{webhookKind, "", i.cfg.Webhook}.String(), Reason: fmt.Sprintf(format, args...)}}
	}
	there := new(admissionregistrationv1.MutatingWebhookConfiguration)
	err := i.writes.Get(bounded, client.ObjectKey{Name: i.cfg.Webhook}, there)
	if apierrors.IsNotFound(err) {
		return problem("is not there: no Pod gets a sidecar. It is part of the chart; or say kubernetes.injection without webhook")
	}
	changed := false
	for w := range there.Webhooks {
		c := &there.Webhooks[w].ClientConfig
		if !bytes.Equal(c.CABundle, roots) {
			c.CABundle, changed = roots, true
		}
	}
	if err == nil && changed {
		if err = i.writes.Update(bounded, there, client.FieldOwner(FieldManager)); err == nil {
			i.cfg.Log.InfoContext(ctx, "written", "object", webhookKind+" "+i.cfg.Webhook, "what", "caBundle")
		}
	}
	last := i.kept
	i.kept = err
	switch {
	case err == nil || ctx.Err() != nil || !answered(err) || passing(err):
		return nil // as it should be, or in a moment
	case last == nil:
		i.cfg.Log.WarnContext(ctx, "webhook configuration not kept, and tried again", "object", i.cfg.Webhook, "error", err)
	}
	return problem("its caBundle can't be kept right: %v", err)
}

// bareShown is how many Pods of a namespace are named.
const bareShown = 3

// bare returns, for each namespace, that there are Pods without a sidecar that should have one.
func (i *injection) bare(ctx context.Context) ([]control.Problem, error) {
	var pods corev1.PodList
	namespaces := metadataListOf("Namespace")
	for _, list := range []client.ObjectList{&pods, namespaces} {
		if err := i.reads.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, err
		}
	}
	labelled := make(map[string]bool)
	for n := range namespaces.Items {
		labelled[namespaces.Items[n].Name] = namespaces.Items[n].Labels[inject.Label] == inject.NamespaceEnabled
	}
	names := make(map[string][]string)
	for p := range pods.Items {
		pod := &pods.Items[p]
		asked := inject.ByPod
		if labelled[pod.Namespace] {
			asked = inject.ByNamespace
		}
		if _, meshed := pod.Annotations[InboundPortAnnotation]; meshed || pod.DeletionTimestamp != nil || ended(pod) {
			continue
		}
		if reason, err := inject.Skip(pod, pod.Namespace, i.cfg.Namespace, asked); reason == "" && err == nil {
			names[pod.Namespace] = append(names[pod.Namespace], pod.Name)
		}
	}
	out := make([]control.Problem, 0, len(names))
	for namespace, pods := range names {
		slices.Sort(pods)
		more := ""
		if n := len(pods) - bareShown; n > 0 {
			pods, more = pods[:bareShown], fmt.Sprintf(" and %d more", n)
		}
		out = append(out, control.Problem{
			Object: object{"Namespace", "", namespace}.String(),
			Reason: fmt.Sprintf("Pods without a sidecar that ask for one (%s): %s%s. They were made before it was asked for, or while nobody injected: restart what makes them, with kubectl rollout restart",
				inject.Label, strings.Join(pods, ", "), more),
		})
	}
	return out, nil
}
