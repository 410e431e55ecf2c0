package capture

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const (
	// maxDestinations bounds what a file may name.
	maxDestinations = 512
	// maxProblems bounds what is said of one: whoever writes it would fill the log.
	maxProblems = 8
)

// private are the ranges that a file may name destinations of (RFC 1918, 6598, 4193): addresses of pods. What it says comes from other
// clusters by way of the node proxy, and none of these may have an address of the Internet captured.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}

// Destinations reads prefixes, one a line, as the node proxy writes them (sidecar.Config.CaptureFile): the pods of other clusters. Those
// that can't be meant are left out, and the error says so: what lies outside of the private ranges, and what holds an address of this machine, whose own
// network it would cut off.
func Destinations(data []byte, machine []netip.Addr) ([]netip.Prefix, error) {
	var out []netip.Prefix
	var errs []error
	wrong := 0
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, err := netip.ParsePrefix(line)
		switch {
		case err != nil:
			err = fmt.Errorf("capture: %.50q is no prefix", line)
		case !slices.ContainsFunc(private, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) }):
			err = fmt.Errorf("capture: %s is not within the private ranges", p)
		case slices.ContainsFunc(machine, p.Contains):
			err = fmt.Errorf("capture: %s holds an address of this machine", p)
		case len(out) >= maxDestinations:
			return out, errors.Join(append(errs, fmt.Errorf("capture: more than %d prefixes", maxDestinations))...)
		}
		if err != nil {
			if wrong++; wrong <= maxProblems {
				errs = append(errs, err)
			}
			continue
		}
		out = append(out, p.Masked())
	}
	if wrong > maxProblems {
		errs = append(errs, fmt.Errorf("capture: and %d more lines like these", wrong-maxProblems))
	}
	return out, errors.Join(errs...)
}
