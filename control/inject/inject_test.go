package inject

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

const roots = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

func settingsOf(tb testing.TB, more string) *Settings {
	tb.Helper()
	s, err := ParseSettings("injection.yaml", []byte("trustDomain: eu.example\ncontrol: isthmus-control.isthmus-system.svc:7400\nimage: example.com/sidecar:1\n"+more))
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// TestGolden: what comes out of manifests, to the letter, and the same again when it goes in once more.
func TestGolden(t *testing.T) {
	for name, more := range map[string]string{"deployment": "", "everything": "log: {format: json}\n", "list": "", "workload-api": "", "cni": "captureBy: cni\ncapture: [\"fd00:241::/64\"]\n"} {
		t.Run(name, func(t *testing.T) {
			from := name
			if name == "cni" {
				from = "deployment"
			}
			in, err := os.ReadFile(filepath.Join("testdata", from+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			asJSON, err := yaml.YAMLToJSONStrict(in)
			if err != nil {
				t.Fatal(err)
			}
			s := settingsOf(t, more)
			out, objects, err := s.Manifest(asJSON, roots)
			if err != nil {
				t.Fatal(err)
			}
			text, err := yaml.JSONToYAML(out)
			if err != nil {
				t.Fatal(err)
			}
			said := ""
			for _, o := range objects {
				if o.Decision.Verdict == Skipped {
					o.Decision.Warnings = nil // they say the same
				}
				said += strings.TrimSpace(fmt.Sprintf("# %s: %s %s %s", o, o.Decision.Verdict, o.Decision.Reason, strings.Join(o.Decision.Warnings, "; "))) + "\n"
			}
			got := said + string(text)
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err = os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got (-update writes it anew):\n%s", d)
			}
			again, objects, err := s.Manifest(out, roots)
			if err != nil || string(again) != string(out) {
				t.Errorf("a second time changes it: %v\n%s", err, again)
			}
			for _, o := range objects {
				if o.Decision.Verdict == Injected {
					t.Errorf("%s was injected a second time", o)
				}
			}
		})
	}
}

func TestWhoGetsOne(t *testing.T) {
	const ns = "shop"
	user := func(id int64) *corev1.SecurityContext { return &corev1.SecurityContext{RunAsUser: &id} }
	for name, c := range map[string]struct {
		pod       corev1.Pod
		namespace string
		asked     Asker
		want      Verdict
		reason    string
	}{
		"by namespace":           {namespace: ns, want: Injected},
		"kube-system":            {namespace: "kube-system", want: Skipped, reason: "kube-system is never injected"},
		"of control":             {namespace: "isthmus-system", want: Skipped, reason: "isthmus-system is never injected"},
		"opted in, kube-system":  {pod: withLabel("true"), namespace: "kube-system", asked: ByPod, want: Skipped, reason: "never injected"},
		"nobody asks":            {namespace: ns, asked: ByPod, want: Skipped, reason: "nobody asks"},
		"opts in":                {pod: withLabel("true"), namespace: ns, asked: ByPod, want: Injected},
		"opts out":               {pod: withLabel("false"), namespace: ns, want: Skipped, reason: "opts out"},
		"opts out by annotation": {pod: annotated(Label, "false"), namespace: ns, want: Skipped, reason: "opts out"},
		"a wish that is none":    {pod: withLabel("yes"), namespace: ns, want: Refused, reason: `label isthmus.dev/inject: "yes": want "true" or "false"`},
		"static":                 {pod: annotated(mirror, "x"), namespace: ns, want: Skipped, reason: "static"},
		"host network":           {pod: corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}, namespace: ns, want: Skipped, reason: "hostNetwork"},
		"windows":                {pod: corev1.Pod{Spec: corev1.PodSpec{NodeSelector: map[string]string{"kubernetes.io/os": "windows"}}}, namespace: ns, want: Skipped, reason: "Windows"},
		"the sidecar's user": {
			pod:       corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{RunAsUser: new(int64(SidecarUser))}}},
			namespace: ns, want: Refused, reason: "spec.securityContext.runAsUser: 15000 is the sidecar's user",
		},
		"the sidecar's user, one container": {pod: containing(corev1.Container{Name: "x", SecurityContext: user(SidecarUser)}), namespace: ns, want: Refused, reason: `spec.containers, "x": runAsUser 15000`},
		"another user":                      {pod: containing(corev1.Container{Name: "x", SecurityContext: user(1000)}), namespace: ns, want: Injected},
		"the sidecar's port":                {pod: containing(corev1.Container{Name: "x", Ports: []corev1.ContainerPort{{ContainerPort: 15008}}}), namespace: ns, want: Refused, reason: "port 15008 is the sidecar's"},
		"the sidecar's port, UDP":           {pod: containing(corev1.Container{Name: "x", Ports: []corev1.ContainerPort{{ContainerPort: 15008, Protocol: corev1.ProtocolUDP}}}), namespace: ns, want: Injected},
		"the sidecar's name":                {pod: containing(corev1.Container{Name: SidecarContainer}), namespace: ns, want: Refused, reason: "choose another"},
		"the sidecar's volume":              {pod: containing(corev1.Container{Name: "x", VolumeMounts: []corev1.VolumeMount{{Name: stateVolume}}}), namespace: ns, want: Refused, reason: "mounts the volume isthmus-state"},
		"no such level":                     {pod: annotated("isthmus.dev/proxy-log-level", "loud"), namespace: ns, want: Refused, reason: `annotation isthmus.dev/proxy-log-level: "loud": want one of debug`},
		"no quantity":                       {pod: annotated("isthmus.dev/proxy-cpu", "much"), namespace: ns, want: Refused, reason: `annotation isthmus.dev/proxy-cpu: "much": want a quantity`},
		"less than it asks for":             {pod: annotated("isthmus.dev/proxy-memory-limit", "16Mi"), namespace: ns, want: Refused, reason: "the sidecar's memory: 32Mi is requested, and 16Mi is its limit: set both isthmus.dev/proxy-memory and isthmus.dev/proxy-memory-limit"},
		"no port":                           {pod: annotated("isthmus.dev/proxy-exclude-outbound-ports", "80,http"), namespace: ns, want: Refused, reason: `"http": want a port`},
		"port 0":                            {pod: annotated("isthmus.dev/proxy-exclude-outbound-ports", "00"), namespace: ns, want: Refused, reason: `"00": want a port`},
		"no prefix":                         {pod: annotated("isthmus.dev/proxy-exclude-outbound-cidrs", "10.0.0.1"), namespace: ns, want: Refused, reason: "want a prefix"},
		"no user":                           {pod: annotated("isthmus.dev/proxy-exclude-outbound-uids", "root"), namespace: ns, want: Refused, reason: "want a user ID"},
		"too many":                          {pod: annotated("isthmus.dev/proxy-exclude-outbound-uids", numbers(65)), namespace: ns, want: Refused, reason: "65 entries: want at most 64"},
	} {
		if len(c.pod.Spec.Containers) == 0 {
			c.pod.Spec.Containers = []corev1.Container{{Name: "app"}}
		}
		d := settingsOf(t, "").Decide(&c.pod, c.namespace, roots, c.asked)
		if d.Verdict != c.want || !strings.Contains(d.Reason, c.reason) || (d.Reason == "") != (c.reason == "") || (len(d.Patch) > 0) != (c.want == Injected) {
			t.Errorf("%s: %s, %q, %d changes; want %s, %q", name, d.Verdict, d.Reason, len(d.Patch), c.want, c.reason)
		}
	}
	pod := annotated("isthmus.dev/proxy-cpus", "1")
	if d := settingsOf(t, "").Decide(&pod, ns, roots, ByNamespace); !slices.Equal(d.Warnings, []string{"annotation isthmus.dev/proxy-cpus: there is no such setting"}) {
		t.Errorf("an annotation that is misspelt: %q", d.Warnings)
	}
}

func withLabel(v string) (p corev1.Pod) { p.Labels = map[string]string{Label: v}; return p }

func annotated(name, v string) (p corev1.Pod) {
	p.Annotations = map[string]string{name: v}
	return p
}

func containing(c corev1.Container) (p corev1.Pod) {
	p.Spec.Containers = []corev1.Container{c}
	return p
}

func numbers(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprint(i))
	}
	return strings.Join(out, ",")
}

func TestSettings(t *testing.T) {
	for text, want := range map[string]string{
		"image: x\n":                           "f.yaml:1: trustDomain: is missing",
		"capture: [x]\n":                       `f.yaml:1: capture: "x": want a prefix`,
		"imagePullPolicy: Ever":                "f.yaml:1: imagePullPolicy: ",
		"captureBy: magic":                     "f.yaml:1: captureBy: ",
		"log: {level: loud}":                   "f.yaml:1: log.level: ",
		"log: {format: xml}":                   "f.yaml:1: log.format: ",
		"control: there":                       "f.yaml:1: control: ",
		"what: ever":                           "f.yaml:1: what: unknown field",
		"resources: {request: }":               "f.yaml:1: resources.request: unknown field",
		"capture: [241.0.0.0/8, \"fd00::/8\"]": "of one family",
	} {
		if _, err := ParseSettings("f.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for bundle, want := range map[string]string{"": "no certificate", "x": "no certificate", roots: "", strings.Repeat(roots, 2000): "at most"} {
		if err := CheckBundle(bundle); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("a bundle of %d bytes: %v, want %q", len(bundle), err, want)
		}
	}
}

// TestProperties: whatever Pod comes, what is its own stays as it was and where it was; names stay unique; a second time, also with other
// settings in between and after what an API server adds, comes to the same.
func TestProperties(t *testing.T) {
	first, second := settingsOf(t, ""), settingsOf(t, "log: {level: debug}\ncaptureBy: cni\n")
	rapid.Check(t, func(t *rapid.T) {
		pod := drawPod(t)
		before := pod.DeepCopy()
		once := inject(t, first, pod)
		if !reflect.DeepEqual(pod, before) {
			t.Fatal("the Pod that was given was changed")
		}
		if d := cmp.Diff(own(before), own(once)); d != "" {
			t.Fatalf("what was the Pod's own is not as it was:\n%s", d)
		}
		names := make(map[string]bool)
		for _, c := range slices.Concat(once.Spec.InitContainers, once.Spec.Containers) {
			if names[c.Name] {
				t.Fatalf("two containers %s", c.Name)
			}
			names[c.Name] = true
		}
		if once.Spec.InitContainers[0].Name != CaptureContainer || once.Spec.InitContainers[1].Name != SidecarContainer {
			t.Fatal("the sidecar does not come first")
		}
		if d := first.Decide(once, "shop", roots, ByNamespace); d.Verdict != Present {
			t.Fatalf("a second time: %+v", d)
		}
		// The API server and its plugins add to every container.
		defaulted := once.DeepCopy()
		for i := range defaulted.Spec.InitContainers {
			c := &defaulted.Spec.InitContainers[i]
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "kube-api-access", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"})
		}
		if d := first.Decide(defaulted, "shop", roots, ByNamespace); d.Verdict != Present {
			t.Fatalf("after what the API server adds: %+v", d)
		}
		there := inject(t, second, once)
		if back := inject(t, first, there); !reflect.DeepEqual(back, once) {
			t.Fatalf("with other settings and back:\n%s", cmp.Diff(once, back))
		}
	})
}

// own is what a Pod has that was not injected.
func own(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	p.Spec.InitContainers = slices.DeleteFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return isOurs(c.Name) })
	p.Spec.Volumes = slices.DeleteFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == configVolume || v.Name == stateVolume })
	for _, name := range []string{InboundPortAnnotation, configAnnotation, bundleAnnotation, CaptureAnnotation, injectedAnnotation} {
		delete(p.Annotations, name)
	}
	if len(p.Annotations) == 0 {
		p.Annotations = nil
	}
	if len(p.Spec.InitContainers) == 0 {
		p.Spec.InitContainers = nil
	}
	if len(p.Spec.Volumes) == 0 {
		p.Spec.Volumes = nil
	}
	return p
}

func inject(t *rapid.T, s *Settings, pod *corev1.Pod) *corev1.Pod {
	d := s.Decide(pod, "shop", roots, ByNamespace)
	if d.Verdict != Injected {
		t.Fatalf("%s: %s", d.Verdict, d.Reason)
	}
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = Apply(raw, d.Patch); err != nil {
		t.Fatal(err)
	}
	out := new(corev1.Pod)
	if err = json.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func drawPod(t *rapid.T) *corev1.Pod {
	p := new(corev1.Pod)
	p.Name = "web"
	if names := rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a/b", "c~d", "e", InboundPortAnnotation, configAnnotation, injectedAnnotation}), rapid.ID).Draw(t, "annotations"); len(names) > 0 {
		p.Annotations = make(map[string]string)
		for _, n := range names {
			p.Annotations[n] = "x"
		}
	}
	names := []string{"a", "b", "c", "d", SidecarContainer, CaptureContainer}
	for _, n := range rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID).Draw(t, "init") {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: n, Image: "i"})
	}
	p.Spec.Containers = []corev1.Container{{Name: "app", Image: "i"}}
	for _, n := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"v", "w", configVolume, stateVolume}), rapid.ID).Draw(t, "volumes") {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: n})
	}
	return p
}
