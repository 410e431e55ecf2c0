package strictyaml_test

import (
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

type port struct {
	Name string `json:"name"`
	Port int32  `json:"port"`
}

type config struct {
	Cluster string            `json:"cluster"`
	Labels  map[string]string `json:"labels"`
	Spec    struct {
		Ports []port `json:"ports"`
		On    bool   `json:"enabled"`
	} `json:"spec"`
}

func TestDecode(t *testing.T) {
	var c config
	err := strictyaml.Decode("c.yaml", []byte("# a comment\ncluster: eu\nspec:\n  enabled: true\n  ports:\n  - {name: http, port: 80}\n"), &c)
	if err != nil {
		t.Fatal(err)
	}
	if c.Cluster != "eu" || !c.Spec.On || len(c.Spec.Ports) != 1 || c.Spec.Ports[0].Port != 80 {
		t.Errorf("got %+v", c)
	}
}

func TestSaysWhere(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"unknown key", "cluster: eu\nclutser: us\n", "c.yaml:2: clutser: unknown field"},
		{"unknown key, nested", "cluster: eu\nspec:\n  ports:\n  - name: http\n    prot: 80\n", "c.yaml:5: spec.ports[0].prot: unknown field"},
		{"other case", "Cluster: eu\n", "c.yaml:1: Cluster: unknown field"},
		{"duplicate key", "cluster: eu\nspec: {}\ncluster: us\n", "c.yaml:3: "},
		{"not a number", "spec:\n  ports:\n  - name: a\n    port: 80\n  - name: b\n    port: eighty\n", "c.yaml:"},
		{"not a list", "spec:\n  ports: 80\n", "c.yaml:2: spec.ports: is a number, want a list"},
		{"bad YAML", "cluster: eu\nspec: [\n", "c.yaml:"},
		{"tab", "cluster: eu\n\tspec: {}\n", "c.yaml:2: "},
		{"two documents", "cluster: eu\n---\ncluster: us\n", "c.yaml:3: a second document"},
		{"empty", "# nothing\n", "c.yaml: empty"},
		{"alias", "labels: &a {x: y}\nspec: *a\n", "c.yaml:2: aliases"},
		{"too deep", strings.Repeat("[", 100) + strings.Repeat("]", 100), "c.yaml:1: nested deeper"},
		{"too long", "cluster: " + strings.Repeat("x", strictyaml.MaxFile), "more than the limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var into config
			err := strictyaml.Decode("c.yaml", []byte(c.in), &into)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestDocumentsKeepTheirLines(t *testing.T) {
	in := "---\n# first\ncluster: eu\n--- # second\ncluster: us\nnope: 1\n---\n\n---\ncluster: ap\n"
	docs, err := strictyaml.Documents("m.yaml", []byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) != 3 {
		t.Fatalf("got %d documents, want 3", len(docs))
	}
	for i, want := range []int{3, 5, 10} {
		if docs[i].StartLine != want {
			t.Errorf("document %d starts at line %d, want %d", i, docs[i].StartLine, want)
		}
	}
	var c config
	if err := docs[1].Decode(&c); err == nil || err.Error() != "m.yaml:6: nope: unknown field" {
		t.Errorf("got %v", err)
	}
	if err := docs[2].Decode(&c); err != nil || c.Cluster != "ap" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestLineOfWhatIsMissing(t *testing.T) {
	docs, err := strictyaml.Documents("m.yaml", []byte("cluster: eu\nspec:\n  enabled: true\n"))
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]int{"spec.enabled": 3, "spec.ports[2].name": 2, "nothing": 1, "": 1} {
		if got := docs[0].Line(field); got != want {
			t.Errorf("Line(%q) = %d, want %d", field, got, want)
		}
	}
}

func FuzzDocuments(f *testing.F) {
	f.Add([]byte("cluster: eu\nspec:\n  ports:\n  - {name: http, port: 80}\n---\ncluster: us\n"))
	f.Add([]byte("a: &x [1, 2]\nb: *x\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		docs, err := strictyaml.Documents("f.yaml", in)
		if err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
		// YAML breaks lines at more than \n (YAML 1.1 section 5.4).
		lines := 1 + strings.Count(string(in), "\n") + strings.Count(string(in), "\r") +
			strings.Count(string(in), "\u0085") + strings.Count(string(in), "\u2028") + strings.Count(string(in), "\u2029")
		for _, d := range docs {
			var c config
			_ = d.Decode(&c)
			if l := d.Line("spec.ports[0].name"); l < 1 || l > lines {
				t.Errorf("line %d of %d", l, lines)
			}
		}
	})
}
