package capture

import (
	"net/netip"
	"strings"
	"testing"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestCheck(t *testing.T) {
	for what, c := range map[string]struct {
		rules Rules
		want  string // part of the error; empty: none
	}{
		"pod":               {Rules{To: prefixes("241.0.0.0/8", "10.96.0.0/12", "fd00:241::/64"), Port: 15006, SkipUsers: []uint32{15000}}, ""},
		"node":              {Rules{To: prefixes("241.0.0.0/8"), Port: 15006, Node: netip.MustParseAddr("192.0.2.7")}, ""},
		"nothing":           {Rules{Port: 15006}, "no destinations"},
		"no port":           {Rules{To: prefixes("241.0.0.0/8")}, "no port"},
		"everything":        {Rules{To: prefixes("0.0.0.0/0"), Port: 1}, "is everything"},
		"everything, IPv6":  {Rules{To: prefixes("::/0"), Port: 1}, "is everything"},
		"loopback":          {Rules{To: prefixes("127.0.0.0/16"), Port: 1}, "loopback"},
		"loopback and more": {Rules{To: prefixes("0.0.0.0/1"), Port: 1}, "loopback"},
		"loopback, IPv6":    {Rules{To: prefixes("::/64"), Port: 1}, "loopback"},
		"the node itself":   {Rules{To: prefixes("192.0.2.0/24"), Port: 1, Node: netip.MustParseAddr("192.0.2.7")}, "to which captured connections go"},
		"left out":          {Rules{To: prefixes("241.0.0.0/8"), Port: 1, SkipTo: prefixes("241.1.0.0/16"), SkipPorts: []uint16{22}}, ""},
		"an invalid one":    {Rules{To: prefixes("241.0.0.0/8"), Port: 1, SkipTo: []netip.Prefix{{}}}, "left out"},
		"too many":          {Rules{To: prefixes("241.0.0.0/8"), Port: 1, SkipPorts: make([]uint16, maxRules)}, "more than 1024"},
		"an invalid prefix": {Rules{To: []netip.Prefix{{}}, Port: 1}, "invalid"},
	} {
		err := c.rules.Check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}
