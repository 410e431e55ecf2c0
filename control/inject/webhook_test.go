package inject

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func reviewOf(tb testing.TB, change func(*admissionv1.AdmissionRequest)) []byte {
	tb.Helper()
	pod := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "i"}}}}
	pod.GenerateName = "web-"
	raw, err := json.Marshal(&pod)
	if err != nil {
		tb.Fatal(err)
	}
	r := &admissionv1.AdmissionRequest{UID: "u-1", Resource: pods, Operation: admissionv1.Create, Namespace: "shop", Object: runtime.RawExtension{Raw: raw}}
	if change != nil {
		change(r)
	}
	body, err := json.Marshal(&admissionv1.AdmissionReview{TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: r})
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

func ask(tb testing.TB, h http.Handler, path, contentType string, body []byte) (int, *admissionv1.AdmissionResponse, string) {
	tb.Helper()
	r := httptest.NewRequestWithContext(tb.Context(), http.MethodPost, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	answer := w.Body.String()
	if w.Code != http.StatusOK {
		return w.Code, nil, answer
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal([]byte(answer), &review); err != nil || review.Response == nil {
		tb.Fatalf("no review: %v\n%s", err, answer)
	}
	return w.Code, review.Response, answer
}

func TestWebhook(t *testing.T) {
	known := roots
	h := Handler(settingsOf(t, ""), func() string { return known }, slog.New(slog.DiscardHandler))
	const js = "application/json"

	code, r, _ := ask(t, h, PathNamespace, js+"; charset=utf-8", reviewOf(t, nil))
	if code != http.StatusOK || !r.Allowed || r.UID != "u-1" || r.PatchType == nil || *r.PatchType != admissionv1.PatchTypeJSONPatch || !strings.Contains(string(r.Patch), SidecarContainer) {
		t.Fatalf("%d: %+v", code, r)
	}
	patched, err := applyRaw(reviewOf(t, nil), r.Patch)
	if err != nil {
		t.Fatal(err)
	}
	// The API server asks again when others have changed the Pod since.
	_, r, _ = ask(t, h, PathNamespace, js, reviewOf(t, func(r *admissionv1.AdmissionRequest) { r.Object.Raw = patched }))
	if !r.Allowed || len(r.Patch) > 0 || len(r.Warnings) > 0 {
		t.Errorf("asked again: %+v", r)
	}
	_, r, _ = ask(t, h, PathPod, js, reviewOf(t, nil))
	if !r.Allowed || len(r.Patch) > 0 || len(r.Warnings) > 0 {
		t.Errorf("a Pod that does not ask: %+v", r)
	}
	_, r, _ = ask(t, h, PathNamespace, js, reviewOf(t, func(r *admissionv1.AdmissionRequest) {
		r.Object.Raw = []byte(`{"spec":{"hostNetwork":true,"containers":[{"name":"app"}]}}`)
	}))
	if !r.Allowed || len(r.Patch) > 0 || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "isthmus: no sidecar for this Pod: it is on its node's network") {
		t.Errorf("a Pod that can't have one: %+v", r)
	}
	_, r, _ = ask(t, h, PathNamespace, js, reviewOf(t, func(r *admissionv1.AdmissionRequest) {
		r.Object.Raw = []byte(`{"spec":{"containers":[{"name":"app","securityContext":{"runAsUser":15000}}]}}`)
	}))
	if r.Allowed || r.Result.Code != 422 || !strings.Contains(r.Result.Message, "15000 is the sidecar's user") {
		t.Errorf("a Pod that is refused: %+v", r)
	}
	for what, change := range map[string]func(*admissionv1.AdmissionRequest){
		"another resource": func(r *admissionv1.AdmissionRequest) { r.Resource.Resource = "services" },
		"a subresource":    func(r *admissionv1.AdmissionRequest) { r.SubResource = "ephemeralcontainers" },
		"an update":        func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update },
	} {
		if _, passed, _ := ask(t, h, PathNamespace, js, reviewOf(t, change)); !passed.Allowed || len(passed.Patch) > 0 {
			t.Errorf("%s: %+v", what, passed)
		}
	}
	for what, raw := range map[string]string{"no object": `1`, "no containers": `{}`, "another type": `{"spec":{"containers":7}}`} {
		_, bad, _ := ask(t, h, PathNamespace, js, reviewOf(t, func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(raw) }))
		if bad.Allowed || bad.Result.Code != 400 {
			t.Errorf("%s: %+v", what, bad)
		}
	}
	for what, c := range map[string]struct {
		contentType, body string
		code              int
	}{
		"no JSON type": {"text/plain", string(reviewOf(t, nil)), 415},
		"no JSON":      {js, "x", 400},
		"two":          {js, string(reviewOf(t, nil)) + "{}", 400},
		"old":          {js, `{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"1"}}`, 400},
		"no request":   {js, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400},
		"no UID":       {js, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}`, 400},
		"another case": {js, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","Request":{"uid":"1"}}`, 400},
		"too much":     {js, strings.Repeat(" ", maxReview+1), 413},
	} {
		if code, _, answer := ask(t, h, PathNamespace, c.contentType, []byte(c.body)); code != c.code {
			t.Errorf("%s: %d, want %d: %s", what, code, c.code, answer)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, PathNamespace, nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
	known = ""
	if _, r, _ = ask(t, h, PathNamespace, js, reviewOf(t, nil)); r.Allowed || r.Result.Code != 503 {
		t.Errorf("without roots: %+v", r)
	}
}

func applyRaw(review, patch []byte) ([]byte, error) {
	var r admissionv1.AdmissionReview
	if err := json.Unmarshal(review, &r); err != nil {
		return nil, err
	}
	var ops []Op
	if err := json.Unmarshal(patch, &ops); err != nil {
		return nil, err
	}
	return Apply(r.Request.Object.Raw, ops)
}

// FuzzReview: whatever comes, there is an answer, nothing panics, and what is allowed with a patch is a Pod that has all of it.
func FuzzReview(f *testing.F) {
	f.Add(reviewOf(f, nil))
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1","resource":{"version":"v1","resource":"pods"},"operation":"CREATE","object":{"metadata":{"annotations":null},"spec":{"containers":[{"name":"a"}],"initContainers":[{"name":"isthmus-sidecar"}],"volumes":[{"name":"isthmus-state"}]}}}}`))
	names, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(names) == 0 {
		f.Fatalf("no testdata: %v", err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := settingsOf(f, "")
	h := Handler(s, func() string { return roots }, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, body []byte) {
		code, r, answer := ask(t, h, PathNamespace, "application/json", body)
		if code != http.StatusOK || len(r.Patch) == 0 {
			return
		}
		raw, err := applyRaw(body, r.Patch)
		if err != nil {
			t.Fatalf("its patch does not apply: %v\n%s\n%s", err, body, answer)
		}
		pod, err := readPod(raw)
		if err != nil {
			t.Fatal(err)
		}
		if d := s.Decide(pod, "shop", roots, ByNamespace); d.Verdict != Present {
			t.Fatalf("what was injected is %s: %s\n%s", d.Verdict, d.Reason, raw)
		}
	})
}
