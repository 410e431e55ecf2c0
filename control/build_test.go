package control_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// TestBuild builds the world of each archive under testdata/build and compares all of it with the archive's file "want".
// UPDATE=1 writes it anew. An archive holds manifests (*.yaml, but for the following), self.yaml, fleet.yaml, outside.yaml and views.yaml.
func TestBuild(t *testing.T) {
	paths, err := filepath.Glob("testdata/build/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := describeWorld(t, build(t, readScene(t, archive)))
			i := slices.IndexFunc(archive.Files, func(f txtar.File) bool { return f.Name == "want" })
			if i < 0 {
				t.Fatal("no file want")
			}
			if diff := gocmp.Diff(string(archive.Files[i].Data), got); diff != "" {
				if os.Getenv("UPDATE") == "" {
					t.Fatalf("(-want +got)\n%s", diff)
				}
				archive.Files[i].Data = []byte(got)
				if err := os.WriteFile(path, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// The order in which things were declared, or heard, is of no matter; what was sent would be taken by every client.
			for seed := range uint64(5) {
				scene := readScene(t, archive)
				shuffle(scene.Objects, rand.New(rand.NewPCG(seed, 0)))
				built := build(t, scene)
				if diff := gocmp.Diff(got, describeWorld(t, built)); diff != "" {
					t.Fatalf("another world from another order\n%s", diff)
				}
				for key, err := range configstream.NewWorld(built.Resources).Withheld() {
					t.Errorf("%s: clients would refuse it: %v", key, err)
				}
			}
		})
	}
}

func build(t *testing.T, s control.Scene) control.Built {
	t.Helper()
	b, err := control.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readScene reads what stands in an archive.
func readScene(t *testing.T, archive *txtar.Archive) control.Scene {
	t.Helper()
	scene := control.Scene{Objects: new(control.Objects), CIDR: netip.MustParsePrefix("241.0.0.0/8"), Complete: true}
	for _, f := range archive.Files {
		switch f.Name {
		case "want":
		case "self.yaml":
			var self struct {
				Cluster      topology.ClusterName
				Domain       spiffeid.TrustDomain
				Region, Zone string
				CIDR         *netip.Prefix
				Pods         []netip.Prefix
				Known        []string
			}
			decode(t, f, &self)
			scene.Self = control.Self{Cluster: self.Cluster, Domain: self.Domain, Region: self.Region, Zone: self.Zone}
			scene.Known = self.Known
			scene.Pods = self.Pods
			if self.CIDR != nil {
				scene.CIDR = *self.CIDR
			}
		case "fleet.yaml":
			var fleet struct {
				Gateways []topology.Gateway
				Nodes    map[string]netip.AddrPort
				Links    map[topology.ClusterName]control.Link
			}
			decode(t, f, &fleet)
			scene.Gateways, scene.Nodes, scene.Links = fleet.Gateways, fleet.Nodes, fleet.Links
		case "outside.yaml":
			decode(t, f, &scene.Objects.Outside)
		case "views.yaml":
			decode(t, f, &scene.Views)
		default:
			addManifest(t, scene.Objects, f)
		}
	}
	order(scene.Objects)
	return scene
}

func decode(t *testing.T, f txtar.File, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(f.Data, into); err != nil {
		t.Fatalf("%s: %v", f.Name, err)
	}
}

func addManifest(tb testing.TB, o *control.Objects, f txtar.File) {
	tb.Helper()
	parsed := manifest.Parse(f.Name, f.Data)
	if len(parsed.Problems)+len(parsed.Skipped) > 0 {
		tb.Fatalf("%s: %v %v", f.Name, parsed.Problems, parsed.Skipped)
	}
	for _, p := range parsed.Objects {
		switch {
		case p.Service != nil:
			o.Services = append(o.Services, *p.Service)
		case p.Slice != nil:
			o.Slices = append(o.Slices, *p.Slice)
		case p.Workload != nil:
			o.Workloads = append(o.Workloads, *p.Workload)
		case p.Export != nil:
			o.Exports = append(o.Exports, *p.Export)
		case p.Peer != nil:
			o.Peers = append(o.Peers, *p.Peer)
		case p.Policy != nil:
			o.Policies = append(o.Policies, *p.Policy)
		case p.Domain != nil:
			o.Domains = append(o.Domains, *p.Domain)
		case p.Access != nil:
			o.Access = append(o.Access, *p.Access)
		case p.Quota != nil:
			o.Quotas = append(o.Quotas, *p.Quota)
		}
	}
}

// order puts objects into the order that a Registry promises.
func order(o *control.Objects) {
	by := func(a, b control.Meta) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}
	slices.SortFunc(o.Services, func(a, b control.Service) int { return by(a.Meta, b.Meta) })
	slices.SortFunc(o.Slices, func(a, b control.EndpointSlice) int { return by(a.Meta, b.Meta) })
	slices.SortFunc(o.Workloads, func(a, b control.Workload) int { return by(a.Meta, b.Meta) })
	slices.SortFunc(o.Exports, func(a, b control.ServiceExport) int { return by(a.Meta, b.Meta) })
	slices.SortFunc(o.Peers, func(a, b control.ClusterPeer) int { return by(a.Meta, b.Meta) })
	slices.SortFunc(o.Domains, func(a, b control.FederatedTrustDomain) int { return by(a.Meta, b.Meta) })
	slices.SortFunc(o.Policies, func(a, b control.FailoverPolicy) int { return by(a.Meta, b.Meta) })
	slices.SortFunc(o.Access, func(a, b control.AccessPolicy) int { return by(a.Meta, b.Meta) })
	slices.SortFunc(o.Quotas, func(a, b control.QuotaPolicy) int { return by(a.Meta, b.Meta) })
}

// shuffle changes the order that a Registry does not promise anything about: inside of objects.
func shuffle(o *control.Objects, r *rand.Rand) {
	mix(o.Services, r)
	mix(o.Slices, r)
	mix(o.Workloads, r)
	mix(o.Exports, r)
	mix(o.Access, r)
	mix(o.Quotas, r)
	order(o)
	for i := range o.Slices {
		mix(o.Slices[i].Endpoints, r)
	}
}

func mix[T any](s []T, r *rand.Rand) { r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] }) }

func describeWorld(t *testing.T, b control.Built) string {
	t.Helper()
	var out strings.Builder
	for _, r := range b.Resources {
		key := r.GetKey()
		data, err := protojson.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var body map[string]json.RawMessage
		if err := json.Unmarshal(data, &body); err != nil {
			t.Fatal(err)
		}
		delete(body, "key")
		for _, v := range body {
			fmt.Fprintf(&out, "%s:\n%s", key, indent(t, v))
		}
	}
	for _, g := range b.Own.Gateways {
		fmt.Fprintf(&out, "tells gateway %s %v draining=%v\n", g.ID, g.QUIC, g.Draining)
	}
	for _, e := range b.Own.Exports {
		fmt.Fprintf(&out, "tells export %s:\n%s", e.Name, indent(t, mustJSON(t, e)))
	}
	for _, e := range b.Exports {
		for _, c := range e.Conditions {
			fmt.Fprintf(&out, "export %s %s=%s/%s %q\n", e.Export.Service, c.Type, c.Status, c.Reason, c.Message)
		}
	}
	for _, c := range b.Silent {
		fmt.Fprintf(&out, "silent %s\n", c)
	}
	for _, i := range b.Imports {
		fmt.Fprintf(&out, "import %s %s %v %v from %v\n", i.Service(), i.Import.Type, i.IPs, i.Families(), i.Import.Clusters)
		for _, c := range i.Copies {
			fmt.Fprintf(&out, "import %s copies of %s ready=%v ports %v\n", i.Service(), c.Cluster, c.Ready, c.Ports)
			for _, h := range c.Hosts {
				fmt.Fprintf(&out, "import %s copy %q %s of %s at %v on %v\n", i.Service(), h.Hostname, h.Address, c.Cluster, h.IPs, c.Targets)
			}
		}
		for _, c := range i.Conditions {
			fmt.Fprintf(&out, "import %s %s=%s/%s %q\n", i.Service(), c.Type, c.Status, c.Reason, c.Message)
		}
	}
	for _, p := range b.Policies {
		for _, c := range p.Conditions {
			fmt.Fprintf(&out, "policy %s of %d %s=%s/%s %q\n", p.Object(), p.Copies, c.Type, c.Status, c.Reason, c.Message)
		}
	}
	for _, p := range b.Failover {
		for _, c := range p.Conditions {
			fmt.Fprintf(&out, "failover %s %s=%s/%s %q\n", p.Object(), c.Type, c.Status, c.Reason, c.Message)
		}
		for _, r := range p.Rows {
			fmt.Fprintf(&out, "failover %s: %s in %s: %d/%d %s %q %q\n", p.Object(), r.Service, r.Cluster, r.Ready, r.Total, r.State, r.Tier, r.Why)
		}
	}
	for _, p := range b.Problems {
		kind := "problem"
		if p.Note {
			kind = "note"
		}
		fmt.Fprintf(&out, "%s %s\n", kind, p)
	}
	return out.String()
}

func mustJSON(t *testing.T, e federation.Export) []byte {
	t.Helper()
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// indent renders JSON as YAML without what is empty.
func indent(t *testing.T, data []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(prune(v))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		out.WriteString("  " + line)
	}
	return out.String()
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e = prune(e); e == nil || e == "" || e == false || e == float64(0) {
				delete(v, k)
			} else {
				v[k] = e
			}
		}
	case []any:
		if len(v) == 0 {
			return nil
		}
		for i := range v {
			v[i] = prune(v[i])
		}
	}
	return v
}
