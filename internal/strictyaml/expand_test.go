package strictyaml_test

import (
	"bytes"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

func TestExpand(t *testing.T) {
	environment := map[string]string{
		"POD_NAME": "gateway-0", "POD_IP": "10.1.0.7", "POD_IP6": "fd00::7", "EMPTY": "", "HOSTILE": "x\nlog: {level: debug}", "QUOTED": `a"b`,
	}
	lookup := func(name string) (string, bool) {
		v, ok := environment[name]
		return v, ok
	}
	for _, c := range []struct{ in, want, err string }{
		{"id: plain $HOME $ {}\n", "id: plain $HOME $ {}\n", ""},
		{"id: ${POD_NAME}\nat: ${POD_IP}:7443\n", "id: gateway-0\nat: 10.1.0.7:7443\n", ""},
		{"at: \"${POD_IP6}:7443\"\nip: ${POD_IP6}\n", "at: \"[fd00::7]:7443\"\nip: fd00::7\n", ""},
		{"a: 1\nid: ${NOBODY}\n", "", "f.yaml:2: ${NOBODY}: the environment variable is not set"},
		{"id: ${EMPTY}", "", `f.yaml:1: ${EMPTY}: the environment variable is ""; want letters, digits and any of . _ : / @ + -`},
		{"id: ${HOSTILE}", "", `f.yaml:1: ${HOSTILE}: the environment variable is "x\nlog: {level: debug}"; want letters, digits and any of . _ : / @ + -`},
		{"id: ${QUOTED}", "", `f.yaml:1: ${QUOTED}: the environment variable is "a\"b"; want letters, digits and any of . _ : / @ + -`},
		{"id: ${POD NAME}", "", `f.yaml:1: "${POD NAME}": want ${NAME}, the name of an environment variable`},
		{"id: ${}", "", `f.yaml:1: "${}": want ${NAME}, the name of an environment variable`},
		{"id: ${POD_NAME\nx: }", "", `f.yaml:1: "${POD_NAME": want ${NAME}, the name of an environment variable`},
	} {
		out, err := strictyaml.Expand("f.yaml", []byte(c.in), lookup)
		if string(out) != c.want || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("%q:\n got %q, %v\nwant %q, %s", c.in, out, err, c.want, c.err)
		}
	}
}

// FuzzExpand: what has no reference comes out as it went in, and nothing of a refused value does.
func FuzzExpand(f *testing.F) {
	for _, seed := range []string{"id: ${NAME}\n", "${NAME}:1", "${", "${}", "a: $NAME ${NAME", "${NAME}${NAME}"} {
		f.Add([]byte(seed), "fd00::7")
	}
	f.Fuzz(func(t *testing.T, data []byte, value string) {
		out, err := strictyaml.Expand("f.yaml", data, func(name string) (string, bool) { return value, name == "NAME" })
		switch {
		case !bytes.Contains(data, []byte("${")) && (err != nil || !bytes.Equal(out, data)):
			t.Errorf("without a reference: %q became %q, %v", data, out, err)
		case err != nil && out != nil:
			t.Errorf("refused, and still %q", out)
		case err == nil && bytes.Count(out, []byte("\n")) != bytes.Count(data, []byte("\n")):
			t.Errorf("lines moved: %q became %q", data, out)
		}
	})
}
