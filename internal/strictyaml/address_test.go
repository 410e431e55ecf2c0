package strictyaml_test

import (
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

func TestAddress(t *testing.T) {
	for in, want := range map[strictyaml.Address]string{
		"": "", "127.0.0.1:0": "", ":7400": "", "[::1]:65535": "", "control.example:7400": "",
		"7400": "want host:port", "here": "want host:port", "::1": "want host:port", "127.0.0.1:": "0 to 65535",
		"127.0.0.1:65536": "0 to 65535", "127.0.0.1:-1": "0 to 65535", "127.0.0.1:http": "0 to 65535",
	} {
		err := in.Check()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
	var c struct {
		Listen strictyaml.Address `json:"listen"`
	}
	err := strictyaml.Decode("c.yaml", []byte("# a port alone is a number\nlisten: 7400\n"), &c)
	if err == nil || err.Error() != "c.yaml:2: listen: is a number, want host:port" {
		t.Errorf("got %v", err)
	}
}
