package inject

import (
	"encoding/json"
	"slices"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestWorkloadAPI: who asks for the socket gets it, in a form that the sidecar understands; who asks no more loses it, and nothing else; who never
// asked has nothing of it.
func TestWorkloadAPI(t *testing.T) {
	s := settingsOf(t, "")
	patched := func(pod corev1.Pod) corev1.Pod {
		t.Helper()
		d := s.Decide(&pod, "shop", roots, ByNamespace)
		if d.Verdict != Injected {
			t.Fatalf("%s: %s", d.Verdict, d.Reason)
		}
		ops, err := json.Marshal(d.Patch)
		if err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(ops)
		if err != nil {
			t.Fatal(err)
		}
		before, err := json.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		after, err := patch.Apply(before)
		if err != nil {
			t.Fatal(err)
		}
		var out corev1.Pod
		if err = json.Unmarshal(after, &out); err != nil {
			t.Fatal(err)
		}
		if again := s.Decide(&out, "shop", roots, ByNamespace); again.Verdict != Present {
			t.Errorf("a second time: %s", again.Verdict)
		}
		return out
	}
	has := func(pod *corev1.Pod) (mounts, variables int, volume bool) {
		for _, c := range pod.Spec.Containers {
			for _, m := range c.VolumeMounts {
				if m.Name == workloadVolume {
					mounts++
					if !m.ReadOnly {
						t.Errorf("%s can write to it", c.Name)
					}
				}
			}
			for _, e := range c.Env {
				if e.Name == socketVariable && e.Value == "unix://"+workloadSocket {
					variables++
				}
			}
		}
		return mounts, variables, slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == workloadVolume })
	}
	pod := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{
		{Name: "a", Env: []corev1.EnvVar{{Name: "X"}}, VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}},
		{Name: "b"},
		{Name: "c", Env: []corev1.EnvVar{{Name: socketVariable, Value: "unix:///theirs"}}},
	}}}
	plain := patched(pod)
	if m, v, there := has(&plain); m+v > 0 || there {
		t.Errorf("without asking: %d mounts, %d variables, volume %v", m, v, there)
	}
	pod.Annotations = map[string]string{overridePrefix + "workload-api": "true"}
	with := patched(pod)
	if m, v, there := has(&with); m != 3 || v != 2 || !there {
		t.Errorf("%d mounts, %d variables, volume %v", m, v, there)
	}
	var config struct {
		Listen struct {
			WorkloadAPI string `json:"workloadAPI"`
		} `json:"listen"`
		WorkloadAPI struct {
			AnyUID bool `json:"anyUid"`
		} `json:"workloadAPI"`
	}
	if err := yaml.Unmarshal([]byte(with.Annotations[configAnnotation]), &config); err != nil {
		t.Fatal(err)
	}
	if config.Listen.WorkloadAPI != workloadSocket || !config.WorkloadAPI.AnyUID {
		t.Errorf("the sidecar is told %+v", config)
	}
	with.Annotations[overridePrefix+"workload-api"] = "false"
	without := patched(with)
	if m, v, there := has(&without); m+v > 0 || there || len(without.Spec.Containers[0].VolumeMounts) != 1 || len(without.Spec.Containers[2].Env) != 1 {
		t.Errorf("taken away: %d mounts, %d variables, volume %v; %+v", m, v, there, without.Spec.Containers)
	}
	pod.Annotations[overridePrefix+"workload-api"] = "yes"
	if d := s.Decide(&pod, "shop", roots, ByNamespace); d.Verdict != Refused {
		t.Errorf("%s", d.Verdict)
	}
}
