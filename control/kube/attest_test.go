package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

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
		"another account":   bound("shop:admin", "web-0", "uid-web-0"),
		"another namespace": bound("web:web", "web-0", "uid-web-0"), // stolen there, of a Pod that has the same name here
		"expired":           {Error: "token has expired"},
		"another audience":  change(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"https://kubernetes.default.svc"} }),
		"unbound":           change(func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil }),
		"two pods": change(func(s *authenticationv1.TokenReviewStatus) {
			s.User.Extra[extraPodName] = authenticationv1.ExtraValue{"web-0", "gateway-0"}
		}),
		"person": change(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "alice" }),
	}
	live := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).
		WithObjects(&web, &gateway, &node, &plain, &impostor, &ending, &done).
		WithInterceptorFuncs(interceptor.Funcs{Create: tokens.review}).Build()
	a := &attestor{live: live, audience: audience, namespace: "isthmus-system"}

	for token, want := range map[string]control.Attested{
		"web":     {Program: "sidecar", Name: "shop/web-0", ServiceAccount: "web"},
		"gateway": {Program: "gateway", Name: "gateway-0"}, "node": {Program: "node", Name: "node-1"},
	} {
		if who, err := a.attest(t.Context(), token); err != nil || who != want {
			t.Errorf("%s: %+v, %v; want %+v", token, who, err, want)
		}
	}
	for token, want := range map[string]string{
		"plain": "has no sidecar", "impostor": "has no sidecar", "ending": "is ending", "done": "is ending", "gone": "is gone",
		"reborn": "another one", "another account": "has the service account web", "another namespace": "is gone", "expired": "token has expired", "another audience": "made out to others",
		"unbound": "not bound to a Pod", "two pods": "not bound to a Pod", "person": "no service account", "made up": "does not know",
	} {
		if _, err := a.attest(t.Context(), token); !errors.Is(err, control.ErrNotAttested) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it refused: %s", token, err, want)
		}
	}
	if _, err := a.attest(t.Context(), "down"); err == nil || errors.Is(err, control.ErrNotAttested) {
		t.Errorf("while the API server is away: %v, want an error that refuses nobody", err)
	}
}

// jwt makes a token of a payload; nobody has signed it.
func jwt(payload string) string {
	e := base64.RawURLEncoding
	return e.EncodeToString([]byte(`{"alg":"RS256"}`)) + "." + e.EncodeToString([]byte(payload)) + "." + e.EncodeToString([]byte("signature"))
}

// TestScreen: what can't be a good token is refused without a question to anybody.
func TestScreen(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	a := &attestor{audience: audience}
	const pod = `"kubernetes.io":{"namespace":"shop","pod":{"name":"web-0","uid":"u"},"serviceaccount":{"name":"web","uid":"v"}}`
	for what, payload := range map[string]string{
		"as the API server makes them": `{"aud":["` + audience + `"],"exp":1800000600,` + pod + `}`,
		"one audience alone":           `{"aud":"` + audience + `","exp":1800000600,` + pod + `}`,
		"also for others":              `{"aud":["x","` + audience + `"],"exp":1800000600.5,` + pod + `}`,
		"by a clock that is behind":    `{"aud":["` + audience + `"],"exp":1799999990,` + pod + `}`,
	} {
		if err := a.screen(jwt(payload), now); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for token, want := range map[string]string{
		"": "want a JWT", "junk": "want a JWT", "a.b": "want a JWT", "a.!.c": "illegal base64", "a.e30.c.d": "want a JWT",
		jwt(`[]`): "no service account token", jwt(`{`): "no service account token", jwt(`{"aud":7}`): "no service account token",
		jwt(`{}`): "made out to others",
		jwt(`{"aud":["https://kubernetes.default.svc"],"exp":1800000600,` + pod + `}`):                                   "made out to others",
		jwt(`{"aud":["` + audience + `"],"exp":1800000600}`):                                                             "not bound to a Pod",
		jwt(`{"aud":["` + audience + `"],"exp":1800000600,"kubernetes.io":{"namespace":"shop","node":{"name":"node"}}}`): "not bound to a Pod",
		jwt(`{"aud":["` + audience + `"],"exp":1799999000,` + pod + `}`):                                                 "has expired",
		jwt(`{"aud":["` + audience + `"],` + pod + `}`):                                                                  "has expired",
	} {
		if err := a.screen(token, now); !errors.Is(err, control.ErrNotAttested) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want it refused: %s", token, err, want)
		}
	}
}
