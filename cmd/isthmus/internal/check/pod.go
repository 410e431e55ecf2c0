package check

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// PodTrouble says why a Pod is not ready; empty: it is.
func PodTrouble(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "it is being deleted"
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		what := "container " + s.Name
		if w := s.State.Waiting; w != nil && w.Reason != "PodInitializing" {
			return strings.TrimSpace(what + ": " + w.Reason + " " + w.Message)
		}
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			return sprintf("%s ended with %d %s", what, t.ExitCode, t.Reason)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "not scheduled: " + c.Message
		}
	}
	i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	switch {
	case pod.Status.Phase != corev1.PodRunning:
		return "it is " + string(pod.Status.Phase)
	case i < 0:
		return "it has not said that it is ready"
	case pod.Status.Conditions[i].Status != corev1.ConditionTrue:
		c := pod.Status.Conditions[i]
		since := ""
		if !c.LastTransitionTime.IsZero() {
			since = ", for " + time.Since(c.LastTransitionTime.Time).Round(time.Second).String()
		}
		return strings.TrimSpace(c.Reason+" "+c.Message) + since
	}
	return ""
}
