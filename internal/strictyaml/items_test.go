package strictyaml_test

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

func TestItemsKeepTheirLines(t *testing.T) {
	docs, err := strictyaml.Documents("f.yaml", []byte("# first\n---\nkind: List\nitems:\n- name: a\n  port: \"80\"\n- {name: b,\n   what: 1}\n"))
	if err != nil || len(docs) != 1 {
		t.Fatalf("%d documents, %v", len(docs), err)
	}
	items, err := docs[0].Items("items")
	if err != nil || len(items) != 2 {
		t.Fatalf("%d items, %v", len(items), err)
	}
	var item struct {
		Name string `json:"name"`
		Port string `json:"port"`
	}
	if err = items[0].Decode(&item); err != nil || item.Name != "a" || item.Port != "80" {
		t.Errorf("%+v, %v", item, err)
	}
	if items[0].StartLine != 5 || items[1].StartLine != 7 || items[0].Line("port") != 6 {
		t.Errorf("lines %d, %d, %d; want 5, 7, 6", items[0].StartLine, items[1].StartLine, items[0].Line("port"))
	}
	if err = items[1].Decode(&item); err == nil || err.Error() != "f.yaml:8: what: unknown field" {
		t.Errorf("%v", err)
	}
	for _, field := range []string{"kind", "nothing", "items[0]"} {
		if _, err = docs[0].Items(field); err == nil {
			t.Errorf("%s was taken for a list", field)
		}
	}
}
