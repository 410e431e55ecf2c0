package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Paths in the sidecar's container.
const (
	configPath = "/etc/isthmus"
	statePath  = "/var/lib/isthmus"
)

// tokenSeconds is what the API server gives at least; the kubelet renews the token long before.
const tokenSeconds = 600

// parts is all that is put into a Pod.
type parts struct {
	containers  []corev1.Container // init containers, in order
	volumes     []corev1.Volume
	annotations map[string]string
	workloadAPI bool // the application's containers get the socket
}

func (s *Settings) parts(o overrides, bundle string) *parts {
	p := &parts{
		volumes: []corev1.Volume{s.configVolume(), stateVolumeOf()},
		annotations: map[string]string{
			InboundPortAnnotation: strconv.Itoa(InboundPort),
			configAnnotation:      s.config(o),
			bundleAnnotation:      bundle,
		},
	}
	if s.CaptureBy == CaptureByCNI {
		p.annotations[CaptureAnnotation] = s.captureRules(o)
	}
	p.containers = append(p.containers, s.capture(o), s.sidecar(o))
	if o.workloadAPI {
		p.workloadAPI = true
		p.volumes = append(p.volumes, workloadVolumeOf())
	}
	p.annotations[injectedAnnotation] = p.digest()
	return p
}

// CaptureAnnotation tells the CNI plugin what to capture: sidecar/capture's Rules, in JSON.
const CaptureAnnotation = "isthmus.dev/capture"

func (p *parts) digest() string {
	b, err := json.Marshal([]any{p.containers, p.volumes, p.annotations})
	if err != nil { // of plain data
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// config is the sidecar's configuration. What differs from Pod to Pod comes from its environment: a Pod's name is not known yet when it is
// made from a template.
func (s *Settings) config(o overrides) string {
	socket, who := "", ""
	if o.workloadAPI {
		socket, who = "  workloadAPI: "+workloadSocket+"\n", workloadConfig
	}
	return fmt.Sprintf(`workload: ${POD_NAMESPACE}/${POD_NAME}
control: %s
trustDomain: %s
state: %s/state
joinTokenFile: %s/token
trustBundleFile: %[4]s/trust-bundle.pem
listen:
  inbound: 0.0.0.0:%d
  captured: "%s:%d"
  admin: 0.0.0.0:%d
%s%slog: {level: %s, format: %s}
`, s.Control, s.TrustDomain, statePath, configPath, InboundPort, s.loopback(), CapturedPort, AdminPort, socket, who, o.logLevel, s.Log.Format)
}

func (s *Settings) captureArgs(o overrides) []string {
	args := []string{
		"--to=" + strings.Join(s.Capture, ","),
		"--port=" + strconv.Itoa(CapturedPort),
		"--skip-user=" + strings.Join(o.skipUsers, ","),
	}
	if len(o.skipTo) > 0 {
		args = append(args, "--skip-to="+strings.Join(o.skipTo, ","))
	}
	if len(o.skipPorts) > 0 {
		args = append(args, "--skip-ports="+strings.Join(o.skipPorts, ","))
	}
	return args
}

// captureRules says the same as captureArgs.
func (s *Settings) captureRules(o overrides) string {
	numbers := func(in []string) (out []json.Number) {
		for _, v := range in {
			out = append(out, json.Number(v))
		}
		return out
	}
	b, err := json.Marshal(struct {
		To        []string      `json:"to"`
		Port      int           `json:"port"`
		SkipUsers []json.Number `json:"skipUsers"`
		SkipTo    []string      `json:"skipTo,omitempty"`
		SkipPorts []json.Number `json:"skipPorts,omitempty"`
	}{s.Capture, CapturedPort, numbers(o.skipUsers), o.skipTo, numbers(o.skipPorts)})
	if err != nil { // numbers were read as such
		panic(err)
	}
	return string(b)
}

// container is what both containers have in common. What the API server would fill in is written out: a Pod that is looked at again is
// then as it was made.
func (s *Settings) container(name string, o overrides) corev1.Container {
	return corev1.Container{
		Name: name, Image: s.Image, ImagePullPolicy: s.ImagePullPolicy,
		Resources:              *o.resources.DeepCopy(),
		TerminationMessagePath: corev1.TerminationMessagePathDefault, TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
}

// capture runs once, before all others. Only root may hold a capability in a container, and this one is all that it keeps. Where the CNI
// plugin captures, it has no right at all, and finds out whether that was done: a Pod on a node without the plugin does not start, rather than
// call as somebody else.
func (s *Settings) capture(o overrides) corev1.Container {
	c := s.container(CaptureContainer, o)
	c.Command, c.Args = []string{"/isthmus-capture"}, s.captureArgs(o)
	c.SecurityContext = restricted(verifyUser)
	if s.CaptureBy == CaptureByCNI {
		c.Args = append([]string{"--verify"}, c.Args...)
		return c
	}
	c.SecurityContext.RunAsUser, c.SecurityContext.RunAsGroup, c.SecurityContext.RunAsNonRoot = new(int64(0)), new(int64(0)), new(false)
	c.SecurityContext.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
	return c
}

// verifyUser is one whose connections are captured as an application's are.
const verifyUser = 15001

// restricted is what the Pod Security level of that name asks for.
func restricted(user int64) *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsUser: new(user), RunAsGroup: new(user), RunAsNonRoot: new(true),
		Privileged: new(false), AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// sidecar starts before the application and ends after it. The application starts when a call can be made: when the sidecar is ready.
func (s *Settings) sidecar(o overrides) corev1.Container {
	c := s.container(SidecarContainer, o)
	c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	c.Command, c.Args = []string{"/isthmus-sidecar"}, []string{"--config=" + configPath + "/sidecar.yaml"}
	for _, e := range [][2]string{{"POD_NAMESPACE", "metadata.namespace"}, {"POD_NAME", "metadata.name"}} {
		c.Env = append(c.Env, corev1.EnvVar{Name: e[0], ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: e[1]}}})
	}
	c.Ports = []corev1.ContainerPort{
		{Name: "isthmus-inbound", ContainerPort: InboundPort, Protocol: corev1.ProtocolTCP},
		{Name: "isthmus-admin", ContainerPort: AdminPort, Protocol: corev1.ProtocolTCP},
	}
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(AdminPort), Scheme: corev1.URISchemeHTTP}}
	// A control that is away for ten minutes is no reason to start the sidecar anew; nor is it afterwards, but somebody should see it.
	c.StartupProbe = &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 600}
	c.ReadinessProbe = &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 5, TimeoutSeconds: 2, SuccessThreshold: 1, FailureThreshold: 3}
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: configVolume, MountPath: configPath, ReadOnly: true},
		{Name: stateVolume, MountPath: statePath},
	}
	if o.workloadAPI {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: workloadVolume, MountPath: workloadPath})
	}
	c.SecurityContext = restricted(SidecarUser)
	return c
}

// configVolume is configuration and roots, from the Pod's annotations, and the token by which control knows the Pod.
func (s *Settings) configVolume() corev1.Volume {
	annotation := func(name, file string) corev1.DownwardAPIVolumeFile {
		return corev1.DownwardAPIVolumeFile{Path: file, FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.annotations['" + name + "']"}}
	}
	return corev1.Volume{Name: configVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: new(corev1.ProjectedVolumeSourceDefaultMode),
		Sources: []corev1.VolumeProjection{
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				annotation(configAnnotation, "sidecar.yaml"), annotation(bundleAnnotation, "trust-bundle.pem"),
			}}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Path: "token", ExpirationSeconds: new(int64(tokenSeconds)), Audience: "spiffe://" + s.TrustDomain + "/isthmus/control",
			}},
		},
	}}}
}

// stateVolumeOf is in memory: it holds the workload's key, and goes with the Pod.
func stateVolumeOf() corev1.Volume {
	return corev1.Volume{Name: stateVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
		Medium: corev1.StorageMediumMemory, SizeLimit: new(resource.MustParse("16Mi")),
	}}}
}

// in reports whether a Pod has all of the parts already.
func (p *parts) in(pod *corev1.Pod) bool {
	for name, value := range p.annotations {
		if pod.Annotations[name] != value {
			return false
		}
	}
	for i := range pod.Spec.Containers {
		if p.workloadAPI != mountsSocket(&pod.Spec.Containers[i]) {
			return false
		}
	}
	for i := range p.containers {
		if !slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == p.containers[i].Name }) {
			return false
		}
	}
	for i := range p.volumes {
		if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == p.volumes[i].Name }) {
			return false
		}
	}
	return true
}

// patch takes out what was put in before, and puts in the parts.
func (p *parts) patch(pod *corev1.Pod) []Op {
	var ops []Op
	// The containers first of all: others' init containers may want to call, and none should before what it opens is captured.
	for i, c := range slices.Backward(pod.Spec.InitContainers) {
		if isOurs(c.Name) {
			ops = append(ops, Op{Op: "remove", Path: fmt.Sprintf("/spec/initContainers/%d", i)})
		}
	}
	if len(pod.Spec.InitContainers) == 0 {
		ops = append(ops, Op{Op: "add", Path: "/spec/initContainers", Value: p.containers})
	} else {
		for i := range p.containers {
			ops = append(ops, Op{Op: "add", Path: fmt.Sprintf("/spec/initContainers/%d", i), Value: p.containers[i]})
		}
	}
	for i, v := range slices.Backward(pod.Spec.Volumes) {
		if v.Name == configVolume || v.Name == stateVolume || v.Name == workloadVolume {
			ops = append(ops, Op{Op: "remove", Path: fmt.Sprintf("/spec/volumes/%d", i)})
		}
	}
	if len(pod.Spec.Volumes) == 0 {
		ops = append(ops, Op{Op: "add", Path: "/spec/volumes", Value: p.volumes})
	} else {
		for i := range p.volumes {
			ops = append(ops, Op{Op: "add", Path: "/spec/volumes/-", Value: p.volumes[i]})
		}
	}
	ops = append(ops, p.appOps(pod)...)
	return append(ops, p.annotate(pod.Annotations)...)
}

func (p *parts) annotate(have map[string]string) []Op {
	if len(have) == 0 {
		return []Op{{Op: "add", Path: "/metadata/annotations", Value: p.annotations}}
	}
	var ops []Op
	for _, name := range []string{InboundPortAnnotation, configAnnotation, bundleAnnotation, CaptureAnnotation, injectedAnnotation} {
		value, want := p.annotations[name]
		before, there := have[name]
		path := "/metadata/annotations/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name) // RFC 6901
		switch {
		case want && (!there || before != value):
			ops = append(ops, Op{Op: "add", Path: path, Value: value})
		case !want && there:
			ops = append(ops, Op{Op: "remove", Path: path})
		}
	}
	return ops
}
