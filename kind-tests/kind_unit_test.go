package kindtests

import (
	"strings"
	"testing"
)

// A check that finds nothing must be one that could.
func TestSnapshotDiffers(t *testing.T) {
	before := snapshot{"/api/v1/configmaps/kube-system/coredns": "a", "/api/v1/nodes/<nil>/one": "b", "/api/v1/secrets/x/y": "c"}
	same := snapshot{"/api/v1/configmaps/kube-system/coredns": "a", "/api/v1/nodes/<nil>/one": "b", "/api/v1/secrets/x/y": "c"}
	if err := before.differ(same); err != nil {
		t.Errorf("the same differs: %v", err)
	}
	err := before.differ(snapshot{"/api/v1/configmaps/kube-system/coredns": "other", "/api/v1/nodes/<nil>/one": "b", "/apis/apps/v1/daemonsets/a/left": "d"})
	if err == nil {
		t.Fatal("no difference is seen")
	}
	for _, want := range []string{
		"left: /apis/apps/v1/daemonsets/a/left", "gone: /api/v1/secrets/x/y", "changed: /api/v1/configmaps/kube-system/coredns",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("not said: %s; it says:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "nodes") {
		t.Errorf("what is the same is said to differ:\n%v", err)
	}
}

func TestAllMade(t *testing.T) {
	for out, good := range map[string]bool{"": true, "app=2/2 db=1/1 ": true, "app=1/2 ": false, "app=/1 ": false} {
		if err := allMade(out); (err == nil) != good {
			t.Errorf("allMade(%q) = %v", out, err)
		}
	}
}

func TestAllReady(t *testing.T) {
	for out, good := range map[string]bool{
		"": true, "app-1==True app-2==True ": true, "app-1==True app-2==False ": false, "app-1== ": false,
		"app-1=2026-01-01T00:00:00Z=False app-2==True ": true,
	} {
		if err := allReady(out); (err == nil) != good {
			t.Errorf("allReady(%q) = %v", out, err)
		}
	}
}
