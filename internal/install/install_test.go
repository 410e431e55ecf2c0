package install

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNameFromContext(t *testing.T) {
	for context, want := range map[string]string{
		"kind-c1":                             "c1",
		"k3d-Eu_1":                            "eu-1",
		"minikube":                            "minikube",
		"eu":                                  "eu",
		"prod.eu-west":                        "prod-eu-west",
		"gke_my-project_europe-west4_shop-eu": "shop-eu",
		"arn:aws:eks:eu-west-1:123456789012:cluster/shop-eu": "shop-eu",
		"admin@shop.eu-west-1.eksctl.io":                     "shop-eu-west-1",
		"kubernetes-admin@eu":                                "eu",
		strings.Repeat("a", 70):                              strings.Repeat("a", 63),
		strings.Repeat("a", 62) + "-b":                       strings.Repeat("a", 62),
		"___":                                                "",
	} {
		got := fromContext(context)
		if got != want {
			t.Errorf("%s: %q, want %q", context, got, want)
		}
		if got != "" && !label.MatchString(got) {
			t.Errorf("%s: %q is no RFC 1123 label", context, got)
		}
	}
}

func TestStubComesAndGoes(t *testing.T) {
	for name, text := range map[string]string{
		"kubeadm's":            ".:53 {\n    errors\n    cache 30\n}\n",
		"without a last break": ".:53 {\n    errors\n}",
		"empty":                "",
		"of somebody's zones":  "example.org:53 {\n forward . 192.0.2.1\n}\n.:53 {\n}\n\n\n",
		"with CRLF":            ".:53 {\r\n    errors\r\n}\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			with, err := addStub(text, "10.0.0.53")
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(with, "forward . 10.0.0.53 {\n        prefer_udp\n    }\n}\n") || !strings.HasPrefix(with, text) {
				t.Errorf("added: %q", with)
			}
			if again, wrong := addStub(with, "10.0.0.53"); wrong != nil || again != with {
				t.Errorf("added twice: %v\n%s", wrong, cmp.Diff(with, again))
			}
			moved, err := addStub(with, "10.0.0.54")
			if err != nil || strings.Contains(moved, "10.0.0.53") || strings.Count(moved, stubBegin) != 1 {
				t.Errorf("another address: %v, %q", err, moved)
			}
			for _, from := range []string{with, moved, text} {
				back, err := removeStub(from)
				if err != nil || back != text {
					t.Errorf("removed: %v\n%s", err, cmp.Diff(text, back))
				}
			}
		})
	}
}

// What others wrote after the block came in stays where it is.
func TestStubAmongOthersWork(t *testing.T) {
	with, err := addStub("a\n", "10.0.0.53")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := removeStub("before\n" + with + "after\n"); err != nil || got != "before\na\nafter\n" {
		t.Errorf("%v, %q", err, got)
	}
}

func TestStubRefused(t *testing.T) {
	for text, want := range map[string]string{
		"clusterset.local:53 {\n}\n":                        "not ours",
		"example.org, clusterset.local. {\n}\n":             "not ours",
		"dns://clusterset.local {\n}\n":                     "not ours",
		stubBegin + "\nclusterset.local:53 {\n}\n":          "no \"" + stubEnd,
		stub("10.0.0.53", false) + stub("10.0.0.53", false): "twice",
	} {
		if got, err := addStub(text, "10.0.0.53"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v, want %s", text, got, err, want)
		}
	}
	if _, err := addStub("# clusterset.local {\nnot-clusterset.local {\n}\n", "10.0.0.53"); err != nil {
		t.Errorf("other zones: %v", err)
	}
}

func TestDiff(t *testing.T) {
	old := map[string]any{
		"same": "x", "gone": "x", "data": map[string]any{"a.yaml": "1\n2\n3\n"},
		"containers": []any{map[string]any{"name": "a", "image": "i:1"}, map[string]any{"name": "b", "image": "i:1"}},
		"rules":      []any{map[string]any{"verbs": "get"}, map[string]any{"verbs": "list"}},
	}
	now := map[string]any{
		"same": "x", "new": int64(1), "data": map[string]any{"a.yaml": "1\n2b\n3\n"},
		"containers": []any{map[string]any{"name": "a", "image": "i:2"}, map[string]any{"name": "b", "image": "i:1"}},
		"rules":      []any{map[string]any{"verbs": "list"}, map[string]any{"verbs": "watch"}},
	}
	var got strings.Builder
	if err := PrintChanges(&got, []Change{{What: "create", Object: "A a"}, {What: "change", Object: "B b", Fields: diff("", old, now)}}); err != nil {
		t.Fatal(err)
	}
	want := `create  A a
change  B b
         containers[a].image: "i:1" -> "i:2"
         data[a.yaml]:
           - 2
           + 2b
         gone: "x" -> (none)
         new: (none) -> 1
         rules[]: {"verbs":"get"} -> (none)
         rules[]: (none) -> {"verbs":"watch"}
`
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	got.Reset()
	if err := PrintChanges(&got, nil); err != nil || got.String() != "nothing would change\n" {
		t.Errorf("%v, %q", err, &got)
	}
}
