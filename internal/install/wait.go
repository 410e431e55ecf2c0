package install

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// poll is how often what is waited for is looked at.
const poll = time.Second

// maxLog bounds what is read of a crashed container's log.
const maxLog = 64 << 10

// NotReadyError is what was still waited for when the time was over.
type NotReadyError struct {
	Waiting []string
	err     error
}

// Error says each of it in a line.
func (n *NotReadyError) Error() string {
	why := "the time is up"
	if errors.Is(n.err, context.Canceled) {
		why = "interrupted"
	}
	return fmt.Sprintf("%s, still waiting for\n  %s", why, strings.Join(n.Waiting, "\n  "))
}

// Unwrap returns why the waiting ended.
func (n *NotReadyError) Unwrap() error { return n.err }

// Wait returns when the programs of a component are ready in their present version; of all, when it is empty. What is waited for, and why, is said whenever it changes.
func (e *Engine) Wait(ctx context.Context, component string) error {
	said := map[string]bool{}
	var waiting []string
	for {
		now, err := e.waiting(ctx, component)
		switch {
		case err != nil && ctx.Err() == nil:
			return err
		case err == nil && len(now) == 0:
			return nil
		case err == nil:
			waiting = now
		}
		if ctx.Err() == nil {
			for _, w := range waiting {
				if !said[w] {
					said[w] = true
					e.say("waiting for %s", w)
				}
			}
		}
		select {
		case <-ctx.Done():
			return &NotReadyError{waiting, context.Cause(ctx)}
		case <-time.After(poll):
		}
	}
}

// waiting returns what is not ready, and why.
func (e *Engine) waiting(ctx context.Context, component string) ([]string, error) {
	apps := e.kube.AppsV1()
	selector := "app.kubernetes.io/name=isthmus"
	if component != "" {
		selector += "," + componentLabel + "=" + component
	}
	sets, err := apps.StatefulSets(e.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("StatefulSets of %s: %w", e.Namespace, err)
	}
	daemons, err := apps.DaemonSets(e.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("DaemonSets of %s: %w", e.Namespace, err)
	}
	var out []string
	of := func(kind, name string, done bool, have, want int32, selector *metav1.LabelSelector) error {
		if done {
			return nil
		}
		says := []string{fmt.Sprintf("%s %s: %d of %d ready", kind, name, have, want)}
		pods, err := e.kube.CoreV1().Pods(e.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(selector)})
		if err != nil {
			return fmt.Errorf("pods of %s: %w", e.Namespace, err)
		}
		for _, p := range pods.Items {
			if why := e.trouble(ctx, &p); why != "" {
				says = append(says, "Pod "+p.Name+": "+why)
			}
		}
		out = append(out, strings.Join(says, "; "))
		return nil
	}
	for _, s := range sets.Items {
		if err := of("StatefulSet", s.Name, setReady(&s), s.Status.ReadyReplicas, *s.Spec.Replicas, s.Spec.Selector); err != nil {
			return nil, err
		}
	}
	for _, d := range daemons.Items {
		if err := of("DaemonSet", d.Name, daemonReady(&d), d.Status.NumberReady, d.Status.DesiredNumberScheduled, d.Spec.Selector); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func setReady(s *appsv1.StatefulSet) bool {
	want := *s.Spec.Replicas
	return s.Status.ObservedGeneration >= s.Generation && s.Status.ReadyReplicas == want && s.Status.UpdatedReplicas == want && s.Status.Replicas == want
}

func daemonReady(d *appsv1.DaemonSet) bool {
	want := d.Status.DesiredNumberScheduled
	return d.Status.ObservedGeneration >= d.Generation && d.Status.NumberReady == want && d.Status.UpdatedNumberScheduled == want
}

// trouble says why a Pod is not ready, or "" when it is.
func (e *Engine) trouble(ctx context.Context, p *corev1.Pod) string {
	if p.DeletionTimestamp != nil {
		return "is ending"
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "can't be scheduled: " + c.Message
		}
	}
	all := append(append([]corev1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...)
	for _, c := range all {
		if c.Ready {
			continue
		}
		switch w, t := c.State.Waiting, c.State.Terminated; {
		case w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff" || w.Reason == "ErrImageNeverPull" || w.Reason == "InvalidImageName"):
			return fmt.Sprintf("image %s can't be had: %s", c.Image, cmp.Or(w.Message, w.Reason))
		case w != nil && w.Reason == "ContainerCreating":
			why := e.lastWarning(ctx, p)
			if strings.Contains(why, strconv.Quote(trustBundle)+" not found") {
				return "waits for the trust bundle, which control writes when it first starts"
			}
			return cmp.Or(why, "is being made")
		case w != nil && w.Reason == "CrashLoopBackOff", t != nil && t.ExitCode != 0:
			return fmt.Sprintf("container %s ended, %d times now: %s", c.Name, c.RestartCount+1, cmp.Or(e.lastWords(ctx, p, c.Name, w != nil), "it wrote nothing"))
		case w != nil && w.Reason != "PodInitializing":
			return fmt.Sprintf("container %s: %s", c.Name, cmp.Or(w.Message, w.Reason))
		case c.State.Running != nil:
			return fmt.Sprintf("container %s runs and is not ready: %s", c.Name, cmp.Or(e.missing(ctx, p, c.Name), e.lastWords(ctx, p, c.Name, false), "it wrote nothing"))
		}
	}
	if len(p.Status.ContainerStatuses) == 0 {
		return "is waiting for its node"
	}
	return ""
}

// missing returns what a program says that it lacks, asked by way of the API server; "" where that does not work.
func (e *Engine) missing(ctx context.Context, p *corev1.Pod, container string) string {
	for _, c := range p.Spec.Containers {
		if c.Name != container || c.ReadinessProbe == nil || c.ReadinessProbe.HTTPGet == nil || c.ReadinessProbe.HTTPGet.Host != "" {
			continue
		}
		port := c.ReadinessProbe.HTTPGet.Port.String()
		for _, named := range c.Ports {
			if named.Name == port {
				port = strconv.Itoa(int(named.ContainerPort))
			}
		}
		asking, cancel := context.WithTimeout(ctx, 2*poll)
		defer cancel()
		// The answer is one of not being ready, which client-go takes for an error; its body is what is wanted.
		body, err := e.kube.CoreV1().Pods(p.Namespace).ProxyGet("http", p.Name, port, c.ReadinessProbe.HTTPGet.Path, nil).DoRaw(asking)
		var status *apierrors.StatusError
		if errors.As(err, &status) && status.ErrStatus.Code == http.StatusServiceUnavailable && len(body) > 0 {
			var said struct {
				Missing []string `json:"missing"`
			}
			if json.Unmarshal(body, &said) == nil && len(said.Missing) > 0 {
				return strings.Join(said.Missing, "; ")
			}
			return strings.Join(strings.Fields(string(body)), " ")
		}
	}
	return ""
}

// lastWarning returns the message of the youngest Event that warns of a Pod: why its volumes can't be had, for one.
func (e *Engine) lastWarning(ctx context.Context, p *corev1.Pod) string {
	list, err := e.kube.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "type=Warning,involvedObject.uid=" + string(p.UID),
	})
	if err != nil || len(list.Items) == 0 {
		return ""
	}
	last := list.Items[0]
	for _, ev := range list.Items {
		if last.LastTimestamp.Before(&ev.LastTimestamp) {
			last = ev
		}
	}
	return strings.TrimSpace(last.Message)
}

// lastWords returns the last line of a container's log.
func (e *Engine) lastWords(ctx context.Context, p *corev1.Pod, container string, previous bool) string {
	lines, limit := int64(1), int64(maxLog)
	stream, err := e.kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
		Container: container, Previous: previous, TailLines: &lines, LimitBytes: &limit,
	}).Stream(ctx)
	if err != nil {
		return ""
	}
	defer stream.Close()
	data, err := io.ReadAll(io.LimitReader(stream, maxLog))
	if err != nil {
		return ""
	}
	var last string
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if t := strings.TrimSpace(s.Text()); t != "" {
			last = t
		}
	}
	if rest, timed := strings.CutPrefix(last, "time="); timed { // when it was changes with each look at it, and matters to nobody
		_, last, _ = strings.Cut(rest, " ")
	}
	return last
}
