package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
)

// news returns the conditions of an export that are to be told of by an Event: those that have changed their status or reason, and of
// those that it has for the first time the ones that say more than that all is as expected.
func news(have, want []metav1.Condition) []metav1.Condition {
	before := make(map[string]metav1.Condition, len(have))
	for _, c := range have {
		before[c.Type] = c
	}
	var out []metav1.Condition
	for _, c := range want {
		b, there := before[c.Type]
		changed := there && (b.Status != c.Status || b.Reason != c.Reason)
		first := !there && (isBad(c) || c.Type == string(mcsv1beta1.ServiceExportConditionReady))
		if changed || first {
			out = append(out, c)
		}
	}
	return out
}

// isBad reports whether a condition says that something is not as its owner wants it.
func isBad(c metav1.Condition) bool {
	good := metav1.ConditionTrue
	if c.Type == string(mcsv1beta1.ServiceExportConditionConflict) {
		good = metav1.ConditionFalse
	}
	return c.Status != good
}

// tell makes the Events of a write that was done. They are for people who look at "kubectl describe": the status says the same, so
// one that can't be made is not tried again.
func (w *writer) tell(ctx context.Context, due *write) {
	now := metav1.NewTime(w.cfg.Now())
	for i, c := range due.news {
		e := &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: due.export.Namespace, Name: fmt.Sprintf("%s.%x-%d", due.export.Name, now.UnixNano(), i)},
			InvolvedObject: corev1.ObjectReference{
				APIVersion: mcsv1beta1.GroupVersion.String(), Kind: mcsv1beta1.ServiceExportKindName,
				Namespace: due.export.Namespace, Name: due.export.Name, UID: due.export.UID,
			},
			Type: corev1.EventTypeNormal, Reason: c.Reason, Message: fmt.Sprintf("%s is %s", c.Type, c.Status),
			FirstTimestamp: now, LastTimestamp: now, Count: 1,
			Source: corev1.EventSource{Component: ManagedBy}, ReportingController: ManagedBy,
		}
		if isBad(c) {
			e.Type = corev1.EventTypeWarning
		}
		if c.Message != "" {
			e.Message = cut(e.Message+": "+c.Message, maxEventMessage)
		}
		if err := w.writes.Create(ctx, e); err != nil {
			w.cfg.Log.DebugContext(ctx, "event not made", "object", due.target().String(), "error", err)
		}
	}
}

// maxEventMessage bounds the message of an Event, in bytes, as the API server does.
const maxEventMessage = 1024
