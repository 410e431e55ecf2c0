package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
)

// Service accounts of the mesh's own programs, in the namespace of control.
const (
	GatewayServiceAccount = "isthmus-gateway" // a gateway is named as its Pod
	NodeServiceAccount    = "isthmus-node"    // a node proxy is named as its Node
)

// What the API server says of a token that is bound to a Pod (KEP-1205), in the user's extra.
const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
)

const serviceAccountPrefix = "system:serviceaccount:"

// attestor knows programs by service account tokens that are bound to their Pod and made out to control.
type attestor struct {
	live      client.Client // asks the API server itself, not the caches: a Pod that was deleted a moment ago must not be taken for alive
	audience  string
	namespace string // of control and of the mesh's own programs
}

// Attest asks the API server who shows a token, and looks whether that Pod is there now. It implements control.Attestor.
func (k *Kube) Attest(ctx context.Context, token string) (program, name string, err error) {
	return k.attestor.attest(ctx, token)
}

func (a *attestor) attest(ctx context.Context, token string) (program, name string, err error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{a.audience}}}
	if err = a.live.Create(ctx, review); err != nil {
		return "", "", fmt.Errorf("kube: token review: %w", err)
	}
	namespace, account, pod, err := a.bearer(&review.Status)
	if err != nil {
		return "", "", err
	}
	p := new(corev1.Pod)
	err = a.live.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod.name}, p)
	switch {
	case apierrors.IsNotFound(err):
		return "", "", refused("the Pod %s/%s of the token is gone", namespace, pod.name)
	case err != nil:
		return "", "", fmt.Errorf("kube: pod %s/%s: %w", namespace, pod.name, err)
	case p.UID != pod.uid:
		return "", "", refused("the Pod %s/%s is another one than that of the token", namespace, pod.name)
	case p.DeletionTimestamp != nil || ended(p):
		return "", "", refused("the Pod %s/%s is ending", namespace, pod.name)
	case p.Spec.ServiceAccountName != account:
		return "", "", refused("the Pod %s/%s has the service account %s, the token that of %s", namespace, pod.name, p.Spec.ServiceAccountName, account)
	}
	return a.programOf(p)
}

// boundPod is what a token says of the Pod that it is bound to.
type boundPod struct {
	name string
	uid  types.UID
}

// bearer reads what the API server says of a token.
func (a *attestor) bearer(s *authenticationv1.TokenReviewStatus) (namespace, account string, pod boundPod, err error) {
	if !s.Authenticated {
		return "", "", pod, refused("the API server does not know the token: %s", s.Error)
	}
	if !slices.Contains(s.Audiences, a.audience) {
		return "", "", pod, refused("the token is made out to others, not to %s", a.audience)
	}
	rest, ok := strings.CutPrefix(s.User.Username, serviceAccountPrefix)
	namespace, account, two := strings.Cut(rest, ":")
	if !ok || !two || namespace == "" || account == "" {
		return "", "", pod, refused("%s is no service account", s.User.Username)
	}
	names, uids := s.User.Extra[extraPodName], s.User.Extra[extraPodUID]
	if len(names) != 1 || len(uids) != 1 || names[0] == "" || uids[0] == "" {
		return "", "", pod, refused("the token of %s is not bound to a Pod: whoever holds it could be anybody", s.User.Username)
	}
	return namespace, account, boundPod{names[0], types.UID(uids[0])}, nil
}

// programOf says which program of the mesh a Pod is.
func (a *attestor) programOf(p *corev1.Pod) (program, name string, err error) {
	if p.Namespace == a.namespace {
		switch p.Spec.ServiceAccountName {
		case GatewayServiceAccount:
			return configstream.ProgramGateway, p.Name, nil
		case NodeServiceAccount:
			return configstream.ProgramNode, p.Spec.NodeName, nil
		}
	}
	if _, meshed := p.Annotations[InboundPortAnnotation]; meshed {
		return configstream.ProgramSidecar, p.Namespace + "/" + p.Name, nil
	}
	return "", "", refused("the Pod %s/%s has no sidecar (annotation %s), and is no program of the mesh", p.Namespace, p.Name, InboundPortAnnotation)
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{control.ErrNotAttested}, args...)...)
}
