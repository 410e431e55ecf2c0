package inject

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// overridePrefix begins the annotations by which a Pod has its sidecar otherwise than the cluster's others.
const overridePrefix = "isthmus.dev/proxy-"

// maxExclusions bounds the entries of a list, each of which is a rule of the kernel.
const maxExclusions = 64

// overrides is what one Pod's sidecar is made from.
type overrides struct {
	resources corev1.ResourceRequirements
	logLevel  string
	skipPorts []string
	skipTo    []string
	skipUsers []string
	// workloadAPI: the application gets the sidecar's SPIFFE Workload API.
	workloadAPI bool
}

// overridesOf reads a Pod's annotations. What is wrong is an error: a sidecar that is not as its owner wrote would be found out late.
func (s *Settings) overridesOf(pod *corev1.Pod) (o overrides, warnings []string, err error) {
	o.resources = *s.Resources.DeepCopy()
	o.logLevel = s.Log.Level
	o.skipUsers = []string{strconv.Itoa(SidecarUser)}
	for _, name := range slices.Sorted(maps.Keys(pod.Annotations)) {
		what, is := strings.CutPrefix(name, overridePrefix)
		if !is {
			continue
		}
		value := pod.Annotations[name]
		switch what {
		case "cpu":
			err = o.set(&o.resources.Requests, corev1.ResourceCPU, value)
		case "cpu-limit":
			err = o.set(&o.resources.Limits, corev1.ResourceCPU, value)
		case "memory":
			err = o.set(&o.resources.Requests, corev1.ResourceMemory, value)
		case "memory-limit":
			err = o.set(&o.resources.Limits, corev1.ResourceMemory, value)
		case "log-level":
			if o.logLevel = value; !slices.Contains(levels, value) {
				err = fmt.Errorf("%q: want one of %s", value, strings.Join(levels, ", "))
			}
		case "exclude-outbound-ports":
			o.skipPorts, err = list(value, "a port, 1 to 65535", func(v string) bool { return isNumber(v, 16) && strings.Trim(v, "0") != "" })
		case "exclude-outbound-cidrs":
			o.skipTo, err = list(value, "a prefix such as 241.1.0.0/16", func(v string) bool { _, e := netip.ParsePrefix(v); return e == nil })
		case "exclude-outbound-uids":
			var more []string
			more, err = list(value, "a user ID", func(v string) bool { return isNumber(v, 32) })
			o.skipUsers = append(o.skipUsers, more...)
		case "workload-api":
			if o.workloadAPI = value == "true"; value != "true" && value != "false" {
				err = fmt.Errorf("%q: want \"true\" or \"false\"", value)
			}
		default:
			warnings = append(warnings, "annotation "+name+": there is no such setting")
		}
		if err != nil {
			return o, warnings, fmt.Errorf("annotation %s: %w", name, err)
		}
	}
	return o, warnings, o.fit()
}

func (o *overrides) set(in *corev1.ResourceList, name corev1.ResourceName, value string) error {
	q, err := resource.ParseQuantity(value)
	if err != nil || q.Sign() <= 0 {
		return fmt.Errorf("%q: want a quantity such as 100m (cpu) or 64Mi (memory)", value)
	}
	if *in == nil {
		*in = make(corev1.ResourceList, 1)
	}
	(*in)[name] = q
	return nil
}

// fit: the API server refuses a request that is above its limit, in words about a container that the Pod's owner did not write.
func (o *overrides) fit() error {
	for name, limit := range o.resources.Limits {
		if r, ok := o.resources.Requests[name]; ok && r.Cmp(limit) > 0 {
			return fmt.Errorf("the sidecar's %s: %s is requested, and %s is its limit: set both %s%[1]s and %[4]s%[1]s-limit", name, r.String(), limit.String(), overridePrefix)
		}
	}
	return nil
}

// list reads values that are separated by commas.
func list(value, want string, good func(string) bool) ([]string, error) {
	var out []string
	for v := range strings.SplitSeq(value, ",") {
		if v = strings.TrimSpace(v); v == "" {
			continue
		}
		if !good(v) {
			return nil, fmt.Errorf("%q: want %s", v, want)
		}
		if trimmed := strings.TrimLeft(v, "0"); !strings.ContainsAny(v, ".:/") && trimmed != v {
			v = cmp.Or(trimmed, "0") // 0080 is 80
		}
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	if len(out) > maxExclusions {
		return nil, fmt.Errorf("%d entries: want at most %d", len(out), maxExclusions)
	}
	return out, nil
}

func isNumber(v string, bits int) bool {
	_, err := strconv.ParseUint(v, 10, bits)
	return err == nil
}
