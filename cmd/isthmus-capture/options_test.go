package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/isthmus-mesh/isthmus/sidecar/capture"
)

func TestParse(t *testing.T) {
	for args, want := range map[string]capture.Rules{
		"--to 241.0.0.0/8 --skip-user 15000": {To: []netip.Prefix{netip.MustParsePrefix("241.0.0.0/8")}, Port: 15006, SkipUsers: []uint32{15000}},
		"--to 241.0.0.0/8 --skip-user 15000,0 --skip-to 241.7.0.0/16 --skip-ports 22,9090": {
			To: []netip.Prefix{netip.MustParsePrefix("241.0.0.0/8")}, Port: 15006, SkipUsers: []uint32{15000, 0},
			SkipTo: []netip.Prefix{netip.MustParsePrefix("241.7.0.0/16")}, SkipPorts: []uint16{22, 9090},
		},
		"--to 241.0.0.0/8,fd00:241::/64 --port 1 --node 192.0.2.7": {
			To: []netip.Prefix{netip.MustParsePrefix("241.0.0.0/8"), netip.MustParsePrefix("fd00:241::/64")}, Port: 1, Node: netip.MustParseAddr("192.0.2.7"),
		},
	} {
		o, err := parse(strings.Fields(args))
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		if d := cmp.Diff(want, o.rules, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" {
			t.Errorf("%s (-want +got):\n%s", args, d)
		}
	}
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"":                                        "--skip-user or --node is missing",
		"--to 241.0.0.0/8":                        "--skip-user or --node is missing",
		"--skip-user 1":                           "no destinations",
		"--to nonsense --skip-user 1":             `--to "nonsense": want prefixes`,
		"--to 0.0.0.0/0 --skip-user 1":            "is everything",
		"--to 241.0.0.0/8 --node nowhere":         `--node "nowhere"`,
		"--to 241.0.0.0/8 --node 0.0.0.0":         `--node "0.0.0.0"`,
		"--port 65536 --skip-user 1":              "--port 65536",
		"--port 0 --to 241.0.0.0/8 --skip-user 1": "no port",
		"--skip-user 4294967296":                  `--skip-user "4294967296": want user IDs`,
		"--skip-user 1 --skip-ports 0":            `--skip-ports "0": want ports`,
		"--skip-user 1 --skip-to 241.7.0.0":       `--skip-to "241.7.0.0": want prefixes`,
		"--to 241.0.0.0/8 --skip-user 1 x":        `unexpected argument "x"`,
		"--nonsense":                              "nonsense",
	} {
		err := run(t.Context(), strings.Fields(args), nil, nil)
		if exitCode(err) != 2 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--help") {
			t.Errorf("%q: %v, want %q and where help is", args, err, want)
		}
	}
	var out strings.Builder
	if err := run(t.Context(), []string{"--help"}, &out, nil); err != nil || !strings.HasPrefix(out.String(), "isthmus-capture makes") {
		t.Errorf("--help: %v, %q", err, out.String())
	}
	out.Reset()
	if err := run(t.Context(), []string{"--version"}, &out, nil); err != nil || !strings.HasPrefix(out.String(), "isthmus-capture ") {
		t.Errorf("--version: %v, %q", err, out.String())
	}
}
