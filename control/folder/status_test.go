package folder_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/folder"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestStatusIsWrittenAndNeverRead(t *testing.T) {
	x := start(t, map[string]string{"a.yaml": service("web", 80) + export("web")})
	objects := x.wait("Service shop/web 80\nServiceExport shop/web\n")
	name, err := topology.NewServiceName("shop", "web")
	if err != nil {
		t.Fatal(err)
	}
	us, err := topology.ParseClusterName("us")
	if err != nil {
		t.Fatal(err)
	}
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	status := &control.Status{
		Exports: []control.ExportStatus{{Export: objects.Exports[0], Conditions: []control.Condition{
			{Type: "Valid", Status: control.True, Reason: "Valid", Since: when},
			{Type: "Conflict", Status: control.True, Reason: "PortConflict,TypeConflict", Message: "us: port 81", Since: when},
		}}},
		Imports: []control.ImportStatus{{
			Import: federation.Import{
				Name: name, Type: federation.ClusterSetIP, SessionAffinity: federation.ClientIPAffinity, SessionAffinityTimeout: time.Hour,
				Ports:    []federation.ImportPort{{Port: federation.Port{Name: "http", Number: 80, AppProtocol: "http"}}},
				Clusters: []topology.ClusterName{us},
			},
			IPs:        []netip.Addr{netip.MustParseAddr("241.0.0.1")},
			Conditions: []control.Condition{{Type: "Ready", Status: control.True, Reason: "Ready", Since: when}},
		}},
		Problems: []control.Problem{{Source: control.Source{File: "b.yaml", Line: 3}, Object: "Service shop/b", Reason: "what: \"ever\""}},
	}
	if err = x.folder.PutStatus(t.Context(), status); err != nil {
		t.Fatal(err)
	}

	var exported mcsv1beta1.ServiceExport
	decode(t, x, "exports.yaml", &exported)
	if c := exported.Status.Conditions; exported.Name != "web" || exported.APIVersion != "multicluster.x-k8s.io/v1beta1" || len(c) != 2 ||
		c[1].Reason != "PortConflict,TypeConflict" || !c[1].LastTransitionTime.Time.Equal(when) {
		t.Errorf("export: %+v", exported)
	}
	var imported mcsv1beta1.ServiceImport
	decode(t, x, "imports.yaml", &imported)
	if s := imported.Spec; s.IPs[0] != "241.0.0.1" || s.IPFamilies[0] != "IPv4" || *s.SessionAffinityConfig.ClientIP.TimeoutSeconds != 3600 ||
		s.Ports[0].Port != 80 || *s.Ports[0].AppProtocol != "http" || imported.Status.Clusters[0].Cluster != "us" {
		t.Errorf("import: %+v", imported)
	}
	problems, err := os.ReadFile(filepath.Join(x.dir, ".status", "problems.yaml"))
	if err != nil || !strings.Contains(string(problems), "line: 3") {
		t.Errorf("problems: %s, %v", problems, err)
	}

	// What did not change is not written; what somebody put there is not read.
	path := filepath.Join(x.dir, ".status", "imports.yaml")
	if err := os.WriteFile(path, []byte(workload("intruder", "10.6.6.6")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := x.folder.PutStatus(t.Context(), status); err != nil {
		t.Fatal(err)
	}
	x.write("a.yaml", service("web", 81)+export("web"))
	x.wait("Service shop/web 81\nServiceExport shop/web\n")
	if data, err := os.ReadFile(path); err != nil || !strings.Contains(string(data), "intruder") {
		t.Errorf("status that had not changed was written again: %s, %v", data, err)
	}
}

func decode(t *testing.T, x *fixture, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(x.dir, ".status", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := strictyaml.Decode(name, data, into); err != nil {
		t.Fatal(err)
	}
}

func TestStatusOfAFolderThatIsAway(t *testing.T) {
	f, err := folder.New(folder.Config{Dir: filepath.Join(t.TempDir(), "away")})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.PutStatus(t.Context(), new(control.Status)); err == nil {
		t.Fatal("status was written to a folder that is not there")
	}
}

// TestStatusIsNoLink: whoever may write manifests must not have control write elsewhere.
func TestStatusIsNoLink(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(dir, ".status")); err != nil {
		t.Fatal(err)
	}
	f, err := folder.New(folder.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.PutStatus(t.Context(), new(control.Status)); err == nil || !strings.Contains(err.Error(), "no link") {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) != 0 {
		t.Errorf("%v were written elsewhere, %v", entries, err)
	}
}
