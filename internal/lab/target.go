package lab

import (
	"fmt"
	"slices"
	"strings"
)

// resolve returns the processes that a target names, in the order of the spec:
//
//	us                    the whole cluster
//	us/gateway-0          one process (also us/control, us/node-0)
//	us/checkout-0         a workload: its application and its sidecar
//	us/checkout           every workload of that app
//	us/checkout-0-app     only the application, or, with -sidecar, only the sidecar (also us/checkout-app)
//
// No target means everything.
func (st state) resolve(targets []string) ([]unit, error) {
	all := st.all()
	if len(targets) == 0 {
		return all, nil
	}
	var hit []string
	for _, t := range targets {
		cluster, name, _ := strings.Cut(t, "/")
		n := len(hit)
		for _, u := range all {
			if u.cluster == cluster && (name == "" || u.answersTo(name)) {
				hit = append(hit, u.id())
			}
		}
		if len(hit) == n {
			return nil, st.noTarget(t, cluster)
		}
	}
	return slices.DeleteFunc(all, func(u unit) bool { return !slices.Contains(hit, u.id()) }), nil
}

func (u unit) answersTo(name string) bool {
	if u.name == name {
		return true
	}
	switch u.program {
	case App:
		return name == u.workload.Name || name == u.workload.App || name == u.workload.App+"-app"
	case Sidecar:
		return name == u.workload.Name || name == u.workload.App || name == u.workload.App+"-sidecar"
	default:
		return false
	}
}

func (st state) noTarget(target, cluster string) error {
	var names []string
	for _, c := range st.Spec.Clusters {
		if c.Name != cluster {
			names = append(names, c.Name)
			continue
		}
		names = names[:0]
		for _, u := range c.units() {
			names = append(names, u.id())
		}
		for _, w := range c.Workloads {
			names = append(names, c.Name+"/"+w.App)
		}
		break
	}
	return fmt.Errorf("%q: %w; there are: %s", target, ErrNoTarget, strings.Join(names, ", "))
}

// sidecarOf returns the sidecar of a caller "cluster/workload" or "cluster/app".
func (st state) sidecarOf(caller string) (unit, error) {
	cluster, name, ok := strings.Cut(caller, "/")
	if ok {
		for _, u := range st.all() {
			if u.cluster == cluster && u.program == Sidecar && u.answersTo(name) {
				return u, nil
			}
		}
	}
	var names []string
	for _, u := range st.all() {
		if u.program == Sidecar {
			names = append(names, u.cluster+"/"+u.workload.Name)
		}
	}
	return unit{}, fmt.Errorf("workload %q: %w; there are: %s", caller, ErrNoTarget, strings.Join(names, ", "))
}
