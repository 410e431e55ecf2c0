package capture

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestDestinations(t *testing.T) {
	machine := []netip.Addr{netip.MustParseAddr("192.168.7.2"), netip.MustParseAddr("10.1.0.1")}
	for title, c := range map[string]struct{ file, want, problem string }{
		"empty":              {"", "[]", ""},
		"as written":         {"10.2.0.0/16\nfd00:2::/56\n", "[10.2.0.0/16 fd00:2::/56]", ""},
		"own pods":           {"10.1.0.0/16\n10.2.0.0/16\n", "[10.2.0.0/16]", "10.1.0.0/16 holds an address of this machine"},
		"all private ones":   {"10.0.0.0/8\n", "[]", "holds an address"},
		"the Internet":       {"8.8.8.0/24\n2001:db8::/32\n10.2.0.0/16\n", "[10.2.0.0/16]", "2001:db8::/32 is not within"},
		"everything":         {"0.0.0.0/0\n8.0.0.0/6\n", "[]", "8.0.0.0/6 is not within"},
		"loopback":           {"127.0.0.0/8\n", "[]", "not within"},
		"no prefix":          {"10.2.0.0\n10.3.0.0/16", "[10.3.0.0/16]", "no prefix"},
		"too many":           {strings.Repeat("10.2.0.0/16\n", maxDestinations+1), "", "more than"},
		"nonsense at length": {strings.Repeat("x\n", 30000) + "10.2.0.0/16\n", "[10.2.0.0/16]", "and 29992 more"},
	} {
		got, err := Destinations([]byte(c.file), machine)
		if c.want != "" && fmt.Sprint(got) != c.want || len(got) > maxDestinations {
			t.Errorf("%s: %v, want %s", title, got, c.want)
		}
		if err != nil && strings.Count(err.Error(), "\n") > maxProblems {
			t.Errorf("%s: says %d lines", title, strings.Count(err.Error(), "\n")+1)
		}
		if (err != nil) != (c.problem != "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s: %v, want %q", title, err, c.problem)
		}
	}
}
