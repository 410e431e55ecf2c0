package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// The SPIFFE Workload API of a Pod's sidecar, for a Pod that asks for it: a socket on a volume that its containers mount.
const (
	workloadVolume = "isthmus-workload-api"
	workloadPath   = "/run/isthmus/workload-api"
	workloadSocket = workloadPath + "/spiffe.sock"

	// socketVariable is where programs that know SPIFFE look for it.
	socketVariable = "SPIFFE_ENDPOINT_SOCKET"
)

// workloadConfig is what of the sidecar's configuration is about it. The volume is the Pod's alone, and users are no way to tell its
// containers apart.
const workloadConfig = "workloadAPI: {anyUid: true}\n"

func workloadVolumeOf() corev1.Volume {
	return corev1.Volume{Name: workloadVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
}

// appOps gives the application's containers the socket, and its address; or takes away what an earlier patch gave them.
func (p *parts) appOps(pod *corev1.Pod) (ops []Op) {
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		at := fmt.Sprintf("/spec/containers/%d/", i)
		for j, m := range slices.Backward(c.VolumeMounts) {
			if m.Name == workloadVolume && !p.workloadAPI {
				ops = append(ops, Op{Op: "remove", Path: fmt.Sprintf("%svolumeMounts/%d", at, j)})
			}
		}
		for j, e := range slices.Backward(c.Env) {
			if e.Name == socketVariable && e.Value == "unix://"+workloadSocket && !p.workloadAPI {
				ops = append(ops, Op{Op: "remove", Path: fmt.Sprintf("%senv/%d", at, j)})
			}
		}
		if !p.workloadAPI {
			continue
		}
		if !mountsSocket(c) {
			ops = append(ops, appended(at+"volumeMounts", len(c.VolumeMounts), corev1.VolumeMount{Name: workloadVolume, MountPath: workloadPath, ReadOnly: true}))
		}
		if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == socketVariable }) { // whoever wrote another one meant it
			ops = append(ops, appended(at+"env", len(c.Env), corev1.EnvVar{Name: socketVariable, Value: "unix://" + workloadSocket}))
		}
	}
	return ops
}

func mountsSocket(c *corev1.Container) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == workloadVolume })
}

// appended adds an element to a list of so many.
func appended[T any](path string, n int, value T) Op {
	if n == 0 {
		return Op{Op: "add", Path: path, Value: []T{value}}
	}
	return Op{Op: "add", Path: path + "/-", Value: value}
}
