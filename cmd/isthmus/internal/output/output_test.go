package output

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type pair struct {
	Name string `json:"name"`
	Age  int    `json:"age"`
}

func TestWrite(t *testing.T) {
	value := []pair{{"web", 1}, {"<evil\x1b[2J>\t", 22}}
	table := func() Table {
		t := Table{Columns: []string{"NAME", "AGE"}, Wide: []string{"NOTE"}}
		t.Row("web", "1", "")
		t.Row("<evil\x1b[2J>\t", "22", "x")
		return t
	}
	for _, c := range []struct {
		format Format
		want   string
	}{
		{TableFormat, "NAME          AGE\nweb           1\n<evil [2J>    22\n"},
		{WideFormat, "NAME          AGE   NOTE\nweb           1     -\n<evil [2J>    22    x\n"},
		{JSONFormat, "[\n  {\n    \"name\": \"web\",\n    \"age\": 1\n  },\n  {\n    \"name\": \"<evil\\u001b[2J>\\t\",\n    \"age\": 22\n  }\n]\n"},
		{YAMLFormat, "- age: 1\n  name: web\n- age: 22\n  name: \"<evil\\e[2J>\\t\"\n"},
	} {
		var b strings.Builder
		if err := Write(&b, c.format, value, table); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, b.String()); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.format, d)
		}
	}
}

func TestEmptyTable(t *testing.T) {
	var b strings.Builder
	err := Write(&b, TableFormat, nil, func() Table { return Table{Columns: []string{"NAME"}, Empty: "none"} })
	if err != nil || b.String() != "none\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestFormatFlag(t *testing.T) {
	var f Format
	if err := f.Set("yaml"); err != nil || f != YAMLFormat || f.IsTable() {
		t.Errorf("%q, %v", f, err)
	}
	if err := f.Set("xml"); err == nil {
		t.Error("xml was taken")
	}
}
