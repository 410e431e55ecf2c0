package kube

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

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
func (k *Kube) Attest(ctx context.Context, token string) (control.Attested, error) {
	return k.attestor.attest(ctx, token)
}

// Screen refuses what says itself that it is no token that Attest could find good. It implements control.Attestor.
func (k *Kube) Screen(token string) error { return k.attestor.screen(token, time.Now()) }

// clockSkew is how far control's clock may be ahead of the API server's.
const clockSkew = time.Minute

// claims are what a service account token says (KEP-1205), as far as it is looked at before the API server is asked.
type claims struct {
	Audience audiences `json:"aud"`
	Expires  float64   `json:"exp"` // seconds since 1970, RFC 7519 section 2
	Bound    struct {
		Pod struct {
			Name string `json:"name"`
			UID  string `json:"uid"`
		} `json:"pod"`
	} `json:"kubernetes.io"`
}

// audiences are a list, or one alone (RFC 7519 section 4.1.3).
type audiences []string

// UnmarshalJSON reads either.
func (a *audiences) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// screen looks at a token's payload. Its signature is the API server's to judge, and so is all that is found good here.
func (a *attestor) screen(token string, now time.Time) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return refused("no service account token: want a JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return refused("no service account token: %w", err)
	}
	var c claims
	if err = json.Unmarshal(payload, &c); err != nil {
		return refused("no service account token: %w", err)
	}
	switch {
	case !slices.Contains(c.Audience, a.audience):
		return refused("the token is made out to others, not to %s", a.audience)
	case c.Bound.Pod.Name == "" || c.Bound.Pod.UID == "":
		return refused("the token is not bound to a Pod: whoever holds it could be anybody")
	case c.Expires+clockSkew.Seconds() < float64(now.Unix()):
		return refused("the token has expired")
	}
	return nil
}

func (a *attestor) attest(ctx context.Context, token string) (who control.Attested, err error) {
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{a.audience}}}
	if err = a.live.Create(ctx, review); err != nil {
		return who, fmt.Errorf("kube: token review: %w", err)
	}
	namespace, account, pod, err := a.bearer(&review.Status)
	if err != nil {
		return who, err
	}
	p := new(corev1.Pod)
	err = a.live.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod.name}, p)
	switch {
	case apierrors.IsNotFound(err):
		return who, refused("the Pod %s/%s of the token is gone", namespace, pod.name)
	case err != nil:
		return who, fmt.Errorf("kube: pod %s/%s: %w", namespace, pod.name, err)
	case p.UID != pod.uid:
		return who, refused("the Pod %s/%s is another one than that of the token", namespace, pod.name)
	case p.DeletionTimestamp != nil || ended(p):
		return who, refused("the Pod %s/%s is ending", namespace, pod.name)
	case p.Spec.ServiceAccountName != account:
		return who, refused("the Pod %s/%s has the service account %s, the token that of %s", namespace, pod.name, p.Spec.ServiceAccountName, account)
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
func (a *attestor) programOf(p *corev1.Pod) (control.Attested, error) {
	if p.Namespace == a.namespace {
		switch p.Spec.ServiceAccountName {
		case GatewayServiceAccount:
			return control.Attested{Program: configstream.ProgramGateway, Name: p.Name}, nil
		case NodeServiceAccount:
			return control.Attested{Program: configstream.ProgramNode, Name: p.Spec.NodeName}, nil
		}
	}
	if _, meshed := p.Annotations[InboundPortAnnotation]; meshed {
		return control.Attested{Program: configstream.ProgramSidecar, Name: p.Namespace + "/" + p.Name, ServiceAccount: p.Spec.ServiceAccountName}, nil
	}
	return control.Attested{}, refused("the Pod %s/%s has no sidecar (annotation %s), and is no program of the mesh", p.Namespace, p.Name, InboundPortAnnotation)
}

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{control.ErrNotAttested}, args...)...)
}
