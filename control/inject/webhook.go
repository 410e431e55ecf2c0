package inject

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"time"

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
	maxValues     = 20_000  // in a review: "{}" may become a Container of 1.5 KiB. A Pod with 100 variables and its managed fields has 1,500
	maxNesting    = 64      // a Pod's own fields are some 15 deep, managed fields as much again
	reviewsAtOnce = 2       // that are decoded; one takes milliseconds
	// bodyPatience is how long a body may take to come. It is read before its review takes a turn: who sends slowly keeps nobody waiting.
	bodyPatience = 2 * time.Second
	turnPatience = time.Second
)

// Handler answers AdmissionReviews (admission.k8s.io/v1) for Pods that are made. Nothing secret is in its answers: what it puts into Pods is
// public. bundle returns the trust domain's roots (PEM); empty: not known yet.
func Handler(s *Settings, bundle func() string, log *slog.Logger) http.Handler {
	h := &handler{settings: s, bundle: bundle, log: log, turns: make(chan struct{}, reviewsAtOnce), intake: newIntake(maxBodies)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathNamespace, h.serve(ByNamespace))
	mux.HandleFunc("POST "+PathPod, h.serve(ByPod))
	return mux
}

type handler struct {
	settings *Settings
	bundle   func() string
	log      *slog.Logger
	intake   *intake
	turns    chan struct{} // holds one for each review under way
}

func (h *handler) serve(asked Asker) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			http.Error(w, "want application/json", http.StatusUnsupportedMediaType)
			return
		}
		conn := http.NewResponseController(w)
		_ = conn.SetReadDeadline(time.Now().Add(bodyPatience)) // where there are none, the server's own has to do
		b, err := h.intake.enter(addressOf(r.RemoteAddr), func() { _ = conn.SetReadDeadline(time.Now()) })
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer b.leave()
		body, err := b.read(http.MaxBytesReader(w, r.Body, maxReview))
		if err != nil {
			message, code := unread(err)
			http.Error(w, message, code)
			return
		}
		_ = conn.SetReadDeadline(time.Time{}) // or the connection would be taken for broken when it passes
		if err = h.turn(r.Context(), b); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		defer func() { <-h.turns }()
		if err = checkShape(body); err != nil {
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

// unread returns what to answer when a body could not be read.
func unread(err error) (message string, code int) {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, errCrowded):
		return err.Error(), http.StatusServiceUnavailable
	case errors.As(err, &tooLarge):
		return fmt.Sprintf("a review of more than %d bytes", tooLarge.Limit), http.StatusRequestEntityTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("the review did not come within %s", bodyPatience), http.StatusRequestTimeout
	default:
		return err.Error(), http.StatusBadRequest
	}
}

// turn waits until there is one for a review that was read. The caller gives it back.
func (h *handler) turn(ctx context.Context, b *body) error {
	limit := time.NewTimer(turnPatience)
	defer limit.Stop()
	select {
	case h.turns <- struct{}{}:
		if b.stay() {
			return nil
		}
		<-h.turns
		return errCrowded
	case <-b.gone:
		return errCrowded
	case <-limit.C:
		return fmt.Errorf("%d reviews are under way, and none was done within %s: try again", reviewsAtOnce, turnPatience)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// checkShape bounds what a JSON document becomes when it is decoded, whatever it is decoded into. It counts an empty object or list
// twice, and judges nothing else: decoders do that before they make anything.
func checkShape(doc []byte) error {
	values, depth, quoted := 1, 0, false
	for i := 0; i < len(doc); i++ {
		switch c := doc[i]; {
		case quoted && c == '\\':
			i++ // whatever it is, it ends no string
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			values++
			depth++
		case c == '}' || c == ']':
			depth--
		case c == ',':
			values++
		}
		if values > maxValues {
			return fmt.Errorf("a review of more than %d values", maxValues)
		}
		if depth > maxNesting {
			return fmt.Errorf("a review nested more than %d deep", maxNesting)
		}
	}
	return nil
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
