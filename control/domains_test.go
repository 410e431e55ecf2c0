package control_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

// TestDomainStore: marks and documents are kept apart, by domain; what was damaged is told, and a lost document is no more than that.
func TestDomainStore(t *testing.T) {
	dir := t.TempDir()
	open := func() bundleendpoint.Store {
		return control.NewDomainStore(filepath.Join(dir, "marks.json"), filepath.Join(dir, "documents"))
	}
	long := strings.Repeat("a", 63)
	a, b := spiffeid.RequireTrustDomainFromString("a.test"), spiffeid.RequireTrustDomainFromString(long+"."+long+"."+long+".test")
	dots := spiffeid.RequireTrustDomainFromString("..")
	for i, td := range []spiffeid.TrustDomain{a, b, dots} {
		if k, err := open().Load(td); err != nil || k.Mark != (bundleendpoint.Mark{}) || k.Document != nil {
			t.Errorf("%s: %+v, %v", td.Name(), k, err)
		}
		want := bundleendpoint.Kept{Mark: bundleendpoint.Mark{Sequenced: true, Sequence: uint64(i + 1), Sum: "s"}, Document: []byte(td.Name())}
		if err := open().Save(td, want); err != nil {
			t.Fatal(err)
		}
		if k, err := open().Load(td); err != nil || k.Mark != want.Mark || !bytes.Equal(k.Document, want.Document) {
			t.Errorf("%s: %+v, %v", td.Name(), k, err)
		}
	}
	if k, err := open().Load(a); err != nil || k.Mark.Sequence != 1 {
		t.Errorf("%+v, %v", k, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "documents")); err != nil {
		t.Fatal(err)
	}
	if k, err := open().Load(a); err != nil || k.Mark.Sequence != 1 || k.Document != nil {
		t.Errorf("%+v, %v", k, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "marks.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open().Load(a); err == nil || !strings.Contains(err.Error(), "marks.json") {
		t.Errorf("got %v", err)
	}
}
