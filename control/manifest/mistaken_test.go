package manifest

import (
	"strings"
	"testing"
)

// A misspelt kind is a problem of the file, so that its last good version stays; a foreign kind is left out.
func TestMisspeltKinds(t *testing.T) {
	for _, c := range []struct{ version, kind, problem, skipped string }{
		{"multicluster.x-k8s.io/v1beta1", "ServiceExprot", "is it ServiceExport?", ""},
		{"multicluster.x-k8s.io/v1betta1", "ServiceExport", "use multicluster.x-k8s.io/v1beta1", ""},
		{"v1", "Servce", "is it Service?", ""},
		{"v1", "service", "is it Service?", ""},
		{"isthmus.dev/v1alpha1", "TrafficPolicy", "has no kind TrafficPolicy", ""},
		{"isthmus.dev/v1beta1", "AccessPolicy", "use isthmus.dev/v1alpha1", ""},
		{"apps/v1", "Deployment", "", "was skipped"},
		{"v1", "Secret", "", "was skipped"},
		{"serving.knative.dev/v1", "Service", "", "was skipped"},
		{"multicluster.x-k8s.io/v1beta1", "ServiceImport", "", "written by control alone"},
	} {
		f := Parse("a.yaml", []byte("apiVersion: "+c.version+"\nkind: "+c.kind+"\nmetadata: {name: a, namespace: b}\n"))
		var problem, skipped string
		if len(f.Problems) > 0 {
			problem = f.Problems[0].Reason
		}
		if len(f.Skipped) > 0 {
			skipped = f.Skipped[0].Reason
		}
		if (problem == "") != (c.problem == "") || !strings.Contains(problem, c.problem) ||
			(skipped == "") != (c.skipped == "") || !strings.Contains(skipped, c.skipped) {
			t.Errorf("%s %s: problem %q, skipped %q", c.version, c.kind, problem, skipped)
		}
	}
}
