package check

import (
	"slices"
)

const injectLabel = "isthmus.dev/inject"

var afterLabels = one{
	Check{
		"IST7119", "Injection labels", "isthmus.dev/inject is \"enabled\" on a namespace, and \"true\" or \"false\" on a Pod",
		"Another value asks for nothing, and nobody says so: kubectl label namespace NAME isthmus.dev/inject=enabled --overwrite; of a Pod, in what makes it.",
	}, after, true, judgeLabels,
}

// judgeLabels finds values that were meant to ask for something, and ask for nothing.
func judgeLabels(c *Cluster) verdict {
	for _, err := range []error{c.Kube.Namespaces.Err, c.Kube.Pods.Err} {
		if err != nil {
			return unknown(err)
		}
	}
	var found []string
	for i := range c.Kube.Namespaces.Value {
		n := &c.Kube.Namespaces.Value[i]
		if v := n.Labels[injectLabel]; !slices.Contains([]string{"", "enabled", "disabled", "false"}, v) {
			found = append(found, sprintf("namespace %s has %q", n.Name, v))
		}
	}
	more := 0
	for i := range c.Kube.Pods.Value {
		p := &c.Kube.Pods.Value[i]
		for _, v := range []string{p.Labels[injectLabel], p.Annotations[injectLabel]} {
			if slices.Contains([]string{"", "true", "false"}, v) {
				continue
			}
			if len(found) >= namesMost {
				more++
				continue
			}
			found = append(found, sprintf("Pod %s/%s has %q", p.Namespace, p.Name, v))
		}
	}
	if more > 0 {
		found = append(found, sprintf("and %d more", more))
	}
	if len(found) > 0 {
		return warning(found...)
	}
	return ok()
}
