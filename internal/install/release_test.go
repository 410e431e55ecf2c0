package install

import (
	"testing"

	relcommon "helm.sh/helm/v4/pkg/release/common"
	rel "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestValuesInForce: what an upgrade that failed was given is not what the next one keeps.
func TestValuesInForce(t *testing.T) {
	e := &Engine{kube: fake.NewClientset(), Namespace: "isthmus-system"}
	if r, err := e.inForce(t.Context(), Mesh); r != nil || err != nil {
		t.Fatalf("without a release: %v, %v", r, err)
	}
	record := func(version int, status relcommon.Status, level string) {
		t.Helper()
		r := &rel.Release{
			Name: Mesh, Namespace: e.Namespace, Version: version, Info: &rel.Info{Status: status},
			Config: Values{"log": map[string]any{"level": level}},
		}
		if err := e.record(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	want := func(level string) {
		t.Helper()
		r, err := e.inForce(t.Context(), Mesh)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Config["log"].(map[string]any)["level"]; got != level {
			t.Errorf("log.level is %v, want %s", got, level)
		}
	}
	record(1, relcommon.StatusFailed, "error") // an installation that never came to its end
	want("error")
	record(2, relcommon.StatusDeployed, "info")
	want("info")
	record(3, relcommon.StatusFailed, "debug")
	record(10, relcommon.StatusPendingUpgrade, "warn")
	want("info")
	record(11, relcommon.StatusDeployed, "warn")
	want("warn")
}
