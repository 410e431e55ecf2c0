package manifest_test

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// FuzzParse: whatever the bytes, a file is taken as a whole or not at all, each problem says which file, each object stands once and has
// a place, and the same bytes are always read the same way.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		f.Fatal(err)
	}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			f.Add(file.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		parsed := manifest.Parse("f.yaml", data)
		if len(parsed.Problems) > 0 && parsed.Objects != nil {
			t.Fatal("objects in spite of problems")
		}
		for _, p := range append(parsed.Problems, parsed.Skipped...) {
			if p.File != "f.yaml" || p.Reason == "" || p.Line < 0 {
				t.Fatalf("problem without a place or reason: %+v", p)
			}
		}
		seen := make(map[string]bool)
		for _, o := range parsed.Objects {
			m := o.Meta()
			if m.Name == "" || m.Kind == "" || m.Line <= 0 || seen[m.Object()] {
				t.Fatalf("object without name or place, or twice: %+v", m)
			}
			seen[m.Object()] = true
			travels(t, o)
		}
		for _, o := range parsed.Guards {
			if o.Access == nil || parsed.Objects != nil {
				t.Fatalf("guards %+v beside objects %v", parsed.Guards, parsed.Objects)
			}
			travels(t, o)
		}
		again := manifest.Parse("f.yaml", data)
		if diff := cmp.Diff(parsed.Problems, again.Problems); diff != "" {
			t.Fatalf("read another way the second time:\n%s", diff)
		}
	})
}

// travels: what is taken of a policy every sidecar takes: it fits through the config stream, and compiles.
func travels(t *testing.T, o manifest.Object) {
	t.Helper()
	domainOf := func(string) spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("a.example") }
	in := &topology.Inbound{}
	switch {
	case o.Access != nil:
		policy := o.Access.Resolve(domainOf)
		if _, err := access.Compile([][]access.Policy{{policy}}); err != nil {
			t.Fatalf("%s can't be compiled: %v", o.Access.Object(), err)
		}
		in.Access = [][]access.Policy{{policy}}
	case o.Quota != nil:
		in.Quotas = o.Quota.Resolve(domainOf, 3)
	default:
		return
	}
	var err error
	if in.Name, err = topology.NewServiceName("shop", "a"); err != nil {
		t.Fatal(err)
	}
	for key, err := range configstream.NewWorld([]*configv1.Resource{configstream.EncodeInbound("sidecar/shop/a", in)}).Withheld() {
		t.Fatalf("%s: sidecars would refuse it: %v", key, err)
	}
}
