package main

import (
	"strings"
	"testing"
)

// A drill that could not be told of, or makes no sense, is refused before it begins.
func TestDrillRefused(t *testing.T) {
	alone(t)
	for _, c := range []struct{ flags, want string }{
		{"--cluster us --report " + t.TempDir() + "/none/x.html", "no such folder"},
		{"--cluster us --load NaN", "--load NaN"},
		{"--cluster us --floor NaN", "--floor"},
		{"--cluster us --for -1m", "want 1s to 1h"},
		{"--cluster us --for 9000h", "want 1s to 1h"},
		{"--cluster us --settle -1s", "--settle"},
		{"--cluster us --how loud", "--how loud"},
		{"", "--cluster"},
	} {
		_, said, code := isthmus(t, append([]string{"drill", "failover", "shop/checkout"}, strings.Fields(c.flags)...)...)
		if code != exitUsage || !strings.Contains(said, c.want) {
			t.Errorf("%s: exit %d: %s", c.flags, code, said)
		}
	}
}
