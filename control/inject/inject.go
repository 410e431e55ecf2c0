// Package inject is how a Pod gets its sidecar: what is put into it, which Pods are left alone, and which are refused.
//
// Decide is pure: a Pod and the cluster's Settings go in, a JSON patch (RFC 6902) comes out. The patch adds and removes elements of our own
// names only, and never writes anew what is somebody else's: a Pod of a newer Kubernetes keeps fields that this program does not know.
//
// Handler is the admission webhook around it, for control's program; Manifest is the same for files, for "isthmus inject". control/kube asks
// Skip which Pods without a sidecar ought to have one.
//
// What a Pod gets: the native sidecar isthmus-sidecar (KEP-753: an init container that is restarted always, so that Jobs end), before it
// isthmus-capture, which brings the application's connections to it (or the CNI plugin does that); two volumes; and annotations, from
// which one of the volumes has the sidecar's configuration: nothing is written into the user's namespace but the Pod itself.
package inject

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Names that users and other programs meet.
const (
	// Label on a namespace with the value NamespaceEnabled asks for sidecars in its Pods. On a Pod, as a label or an annotation, "true" or
	// "false" is about that Pod.
	Label            = "isthmus.dev/inject"
	NamespaceEnabled = "enabled"

	// InboundPortAnnotation marks a Pod as one with a sidecar, and says on which port that takes mTLS.
	InboundPortAnnotation = "isthmus.dev/inbound-port"
	configAnnotation      = "isthmus.dev/sidecar-config"
	bundleAnnotation      = "isthmus.dev/trust-bundle"
	// injectedAnnotation is a digest of all that was put in: what carries the present one is left as it is, whatever the API server and
	// other webhooks have made of it since.
	injectedAnnotation = "isthmus.dev/injected"

	// SidecarContainer and CaptureContainer are the init containers.
	SidecarContainer = "isthmus-sidecar"
	CaptureContainer = "isthmus-capture"

	configVolume = "isthmus-config"
	stateVolume  = "isthmus-state"
)

// What the sidecar of a Pod uses, whatever the Pod is. The image and the capture rely on the user ID.
const (
	SidecarUser  = 15000
	InboundPort  = 15008
	CapturedPort = 15006
	AdminPort    = 15020
)

// Op is one operation of a JSON patch.
type Op struct {
	Op    string `json:"op"` // add or remove
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// Verdict is what Decide makes of a Pod.
type Verdict string

// The verdicts.
const (
	Injected Verdict = "injected"
	Present  Verdict = "present" // it has all that it would get
	Skipped  Verdict = "skipped" // it gets none, and may run without
	Refused  Verdict = "refused" // it asks for one, and can't have it as it is
)

// Decision is what is to be done with a Pod, and why.
type Decision struct {
	Verdict  Verdict
	Reason   string   // of one that is skipped or refused: why, and what to do
	Warnings []string // what the Pod's owner should know
	Patch    []Op
}

// Asker is who asks for a sidecar.
type Asker int

// The askers.
const (
	ByNamespace Asker = iota // the Pod's namespace, or a user of the command line: the Pod may opt out
	ByPod                    // only the Pod itself can: it has to opt in
)

// Decide says what is to be done with a Pod of a namespace. bundle holds the trust domain's roots (PEM). It changes nothing.
func (s *Settings) Decide(pod *corev1.Pod, namespace, bundle string, asked Asker) Decision {
	switch reason, err := Skip(pod, namespace, s.SystemNamespace, asked); {
	case err != nil:
		return Decision{Verdict: Refused, Reason: err.Error()}
	case reason != "":
		d := Decision{Verdict: Skipped, Reason: reason}
		if wish, _ := wishOf(pod); wish == "true" || asked == ByNamespace && wish == "" { // it might be thought to have one
			d.Warnings = []string{"no sidecar for this Pod: " + reason}
		}
		return d
	}
	o, warnings, err := s.overridesOf(pod)
	if err == nil {
		err = conflict(pod)
	}
	if err != nil {
		return Decision{Verdict: Refused, Reason: err.Error()}
	}
	if pod.Spec.DNSPolicy == corev1.DNSDefault || pod.Spec.DNSPolicy == corev1.DNSNone {
		warnings = append(warnings, fmt.Sprintf("dnsPolicy %s: without the cluster's DNS, neither control nor names in clusterset.local are found", pod.Spec.DNSPolicy))
	}
	p := s.parts(o, bundle)
	if p.in(pod) {
		return Decision{Verdict: Present, Warnings: warnings}
	}
	return Decision{Verdict: Injected, Warnings: warnings, Patch: p.patch(pod)}
}

// mirror is on the image of a static Pod, which the kubelet runs as its own file says: what is changed here has no effect.
const mirror = "kubernetes.io/config.mirror"

// Skip says why a Pod gets no sidecar and may run without one; "" when it is to have one. An error is a word of the Pod's that can't be
// understood. systemNamespace is control's own.
func Skip(pod *corev1.Pod, namespace, systemNamespace string, asked Asker) (reason string, err error) {
	_, isMirror := pod.Annotations[mirror]
	wish, err := wishOf(pod)
	switch {
	case slices.Contains(protected, namespace), namespace == systemNamespace:
		return "the namespace " + namespace + " is never injected", nil
	case isMirror:
		return "it is a static Pod", nil
	case err != nil:
		return "", err
	case wish == "false":
		return "it opts out (" + Label + ": \"false\")", nil
	case asked == ByPod && wish != "true":
		return "nobody asks for one (label " + Label + ": \"true\")", nil
	case pod.Spec.HostNetwork:
		return "it is on its node's network (hostNetwork), which a sidecar would take from others", nil
	case isWindows(pod):
		return "it runs on Windows", nil
	}
	return "", nil
}

// protected are Kubernetes' own namespaces: a cluster whose control plane waits for the mesh can't be repaired.
var protected = []string{"kube-system", "kube-public", "kube-node-lease"}

// wishOf returns what a Pod says of itself, "true", "false" or "". Where label and annotation differ, "false" counts.
func wishOf(pod *corev1.Pod) (string, error) {
	label, annotation := pod.Labels[Label], pod.Annotations[Label]
	for what, v := range map[string]string{"label": label, "annotation": annotation} {
		if v != "" && v != "true" && v != "false" {
			return "", fmt.Errorf("%s %s: %q: want \"true\" or \"false\"", what, Label, v)
		}
	}
	if label == "false" || annotation == "false" {
		return "false", nil
	}
	return cmp.Or(label, annotation), nil
}

func isWindows(pod *corev1.Pod) bool {
	return pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows || pod.Spec.NodeSelector[corev1.LabelOSStable] == "windows"
}

// conflict says what in a Pod does not go together with a sidecar.
func conflict(pod *corev1.Pod) error {
	if c := pod.Spec.SecurityContext; c != nil && c.RunAsUser != nil && *c.RunAsUser == SidecarUser {
		return fmt.Errorf("spec.securityContext.runAsUser: %d is the sidecar's user: what runs as it is not brought to the sidecar, and could read its key; choose another", SidecarUser)
	}
	for at, list := range map[string][]corev1.Container{"containers": pod.Spec.Containers, "initContainers": pod.Spec.InitContainers} {
		for i := range list {
			c := &list[i]
			if isOurs(c.Name) && at == "initContainers" {
				continue
			}
			where := fmt.Sprintf("spec.%s, %q", at, c.Name)
			if isOurs(c.Name) {
				return fmt.Errorf("%s: that name is for the injected container: choose another", where)
			}
			if s := c.SecurityContext; s != nil && s.RunAsUser != nil && *s.RunAsUser == SidecarUser {
				return fmt.Errorf("%s: runAsUser %d is the sidecar's user: what runs as it is not brought to the sidecar, and could read its key; choose another", where, SidecarUser)
			}
			for _, p := range c.Ports {
				if p.Protocol != corev1.ProtocolUDP && slices.Contains([]int32{InboundPort, CapturedPort, AdminPort}, p.ContainerPort) {
					return fmt.Errorf("%s: port %d is the sidecar's: choose another", where, p.ContainerPort)
				}
			}
			for _, m := range c.VolumeMounts {
				if m.Name == configVolume || m.Name == stateVolume {
					return fmt.Errorf("%s: mounts the volume %s, which is the sidecar's and holds its key or token: take the mount away", where, m.Name)
				}
			}
		}
	}
	return nil
}

func isOurs(container string) bool {
	return container == SidecarContainer || container == CaptureContainer
}
