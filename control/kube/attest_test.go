package kube

import (
	"context"
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/isthmus-mesh/isthmus/control"
)

const audience = "spiffe://eu.example/isthmus/control"

// issuer is an API server, as far as it knows tokens: by token, what it says of it.
type issuer map[string]authenticationv1.TokenReviewStatus

// bound is what an API server says of a good token.
func bound(account, pod, uid string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{audience},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:" + account,
			Extra:    map[string]authenticationv1.ExtraValue{extraPodName: {pod}, extraPodUID: {uid}},
		},
	}
}

func (i issuer) review(_ context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
	r, ok := o.(*authenticationv1.TokenReview)
	if !ok {
		return c.Create(context.Background(), o, opts...)
	}
	if r.Spec.Token == "down" {
		return errors.New("connection refused")
	}
	r.Status = i[r.Spec.Token]
	if len(r.Spec.Audiences) != 1 || r.Spec.Audiences[0] != audience {
		r.Status = authenticationv1.TokenReviewStatus{Error: "asked for another audience"}
	}
	return nil
}

// TestAttest: who a token is of, and every way in which one is refused.
func TestAttest(t *testing.T) {
	web, gateway, node, plain := podOf("web-0", "10.1.0.1"), podOf("gateway-0", "10.1.0.2"), podOf("node-x", "10.1.0.3"), podOf("plain", "10.1.0.4")
	for _, p := range []*corev1.Pod{&gateway, &node} {
		p.Namespace, p.Annotations = "isthmus-system", nil
	}
	gateway.Spec.ServiceAccountName, node.Spec.ServiceAccountName = GatewayServiceAccount, NodeServiceAccount
	plain.Annotations = nil
	impostor := podOf("impostor", "10.1.0.5") // the name of the account does not make a gateway
	impostor.Annotations, impostor.Spec.ServiceAccountName = nil, GatewayServiceAccount
	ending, done := podOf("ending", "10.1.0.6"), podOf("done", "10.1.0.7")
	ending.ObjectMeta = deleted(ending.ObjectMeta)
	done.Status.Phase = corev1.PodSucceeded

	good := bound("shop:web", "web-0", "uid-web-0")
	change := func(f func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		s := *good.DeepCopy()
		f(&s)
		return s
	}
	tokens := issuer{
		"web": good, "gateway": bound("isthmus-system:"+GatewayServiceAccount, "gateway-0", "uid-gateway-0"),
		"node":     bound("isthmus-system:"+NodeServiceAccount, "node-x", "uid-node-x"),
		"plain":    bound("shop:web", "plain", "uid-plain"),
		"impostor": bound("shop:"+GatewayServiceAccount, "impostor", "uid-impostor"),
		"ending":   bound("shop:web", "ending", "uid-ending"), "done": bound("shop:web", "done", "uid-done"),
		"gone": bound("shop:web", "gone", "uid-gone"), "reborn": bound("shop:web", "web-0", "uid-of-the-last"),
		"another account":  bound("shop:admin", "web-0", "uid-web-0"),
		"expired":          {Error: "token has expired"},
		"another audience": change(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"https://kubernetes.default.svc"} }),
		"unbound":          change(func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil }),
		"two pods": change(func(s *authenticationv1.TokenReviewStatus) {
			s.User.Extra[extraPodName] = authenticationv1.ExtraValue{"web-0", "gateway-0"}
		}),
		"person": change(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "alice" }),
	}
	live := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).
		WithObjects(&web, &gateway, &node, &plain, &impostor, &ending, &done).
		WithInterceptorFuncs(interceptor.Funcs{Create: tokens.review}).Build()
	a := &attestor{live: live, audience: audience, namespace: "isthmus-system"}

	for token, want := range map[string]string{"web": "sidecar shop/web-0", "gateway": "gateway gateway-0", "node": "node node-1"} {
		program, name, err := a.attest(t.Context(), token)
		if err != nil || program+" "+name != want {
			t.Errorf("%s: %s %s, %v; want %s", token, program, name, err, want)
		}
	}
	for token, want := range map[string]string{
		"plain": "has no sidecar", "impostor": "has no sidecar", "ending": "is ending", "done": "is ending", "gone": "is gone",
		"reborn": "another one", "another account": "has the service account web", "expired": "token has expired", "another audience": "made out to others",
		"unbound": "not bound to a Pod", "two pods": "not bound to a Pod", "person": "no service account", "made up": "does not know",
	} {
		if _, _, err := a.attest(t.Context(), token); !errors.Is(err, control.ErrNotAttested) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it refused: %s", token, err, want)
		}
	}
	if _, _, err := a.attest(t.Context(), "down"); err == nil || errors.Is(err, control.ErrNotAttested) {
		t.Errorf("while the API server is away: %v, want an error that refuses nobody", err)
	}
}
