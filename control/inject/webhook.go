package inject

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// Paths of the webhook: who asks is known from the one that the API server calls.
const (
	PathNamespace = "/inject/namespace" // for Pods of namespaces that are labelled
	PathPod       = "/inject/pod"       // for Pods elsewhere, which have to opt in
)

// Limits of the webhook. Whoever reaches it may ask: the API server shows no credentials to webhooks unless somebody has configured it to.
const (
	maxReview     = 4 << 20 // bytes: an object that is made; the API server takes at most 3 MiB of one
	reviewsAtOnce = 8
)

// Handler answers AdmissionReviews (admission.k8s.io/v1) for Pods that are made. Nothing secret is in its answers: what it puts into Pods is
// public. bundle returns the trust domain's roots (PEM); empty: not known yet.
func Handler(s *Settings, bundle func() string, log *slog.Logger) http.Handler {
	h := &handler{settings: s, bundle: bundle, log: log, turns: make(chan struct{}, reviewsAtOnce)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathNamespace, h.serve(ByNamespace))
	mux.HandleFunc("POST "+PathPod, h.serve(ByPod))
	return mux
}

type handler struct {
	settings *Settings
	bundle   func() string
	log      *slog.Logger
	turns    chan struct{} // holds one for each review under way
}

func (h *handler) serve(asked Asker) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case h.turns <- struct{}{}:
			defer func() { <-h.turns }()
		case <-r.Context().Done():
			return
		}
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			http.Error(w, "want application/json", http.StatusUnsupportedMediaType)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxReview))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		request, err := readReview(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer := h.review(r.Context(), request, asked)
		answer.UID = request.UID
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(&admissionv1.AdmissionReview{ // the API server went away
			TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}, Response: answer,
		})
	}
}

// readReview reads what the API server asks.
func readReview(body []byte) (*admissionv1.AdmissionRequest, error) {
	var review admissionv1.AdmissionReview
	if err := kjson.UnmarshalCaseSensitivePreserveInts(body, &review); err != nil {
		return nil, fmt.Errorf("no AdmissionReview: %w", err)
	}
	switch {
	case review.APIVersion != admissionv1.SchemeGroupVersion.String() || review.Kind != "AdmissionReview":
		return nil, fmt.Errorf("%q %q: want an AdmissionReview of %s", review.APIVersion, review.Kind, admissionv1.SchemeGroupVersion)
	case review.Request == nil || review.Request.UID == "":
		return nil, errors.New("an AdmissionReview without a request")
	}
	return review.Request, nil
}

// pods is all that is injected.
var pods = metav1.GroupVersionResource{Version: "v1", Resource: "pods"}

func (h *handler) review(ctx context.Context, r *admissionv1.AdmissionRequest, asked Asker) *admissionv1.AdmissionResponse {
	if r.Resource != pods || r.SubResource != "" || r.Operation != admissionv1.Create {
		return &admissionv1.AdmissionResponse{Allowed: true} // a configuration that asks about more than it should
	}
	pod, err := readPod(r.Object.Raw)
	if err != nil {
		return refusal(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
	}
	bundle := h.bundle()
	if err = CheckBundle(bundle); err != nil {
		return refusal(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, err.Error())
	}
	d := h.settings.Decide(pod, r.Namespace, bundle, asked)
	name := pod.Name
	if name == "" {
		name = pod.GenerateName + "…" // it gets its name when all have agreed to it
	}
	logger := h.log.With("namespace", r.Namespace, "pod", name)
	answer := &admissionv1.AdmissionResponse{Allowed: true, AuditAnnotations: map[string]string{"verdict": string(d.Verdict)}}
	for _, w := range d.Warnings {
		answer.Warnings = append(answer.Warnings, "isthmus: "+w)
	}
	switch d.Verdict {
	case Refused:
		logger.WarnContext(ctx, "sidecar not injected, pod refused", "error", d.Reason)
		return refusal(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "no sidecar for this Pod: "+d.Reason)
	case Skipped:
		logger.InfoContext(ctx, "sidecar not injected", "reason", d.Reason)
	case Injected:
		if answer.Patch, err = json.Marshal(d.Patch); err != nil {
			return refusal(http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error())
		}
		answer.PatchType = new(admissionv1.PatchTypeJSONPatch)
		logger.InfoContext(ctx, "sidecar injected")
	case Present:
	}
	return answer
}

func refusal(code int32, reason metav1.StatusReason, message string) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Result: &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "isthmus: " + message}}
}
