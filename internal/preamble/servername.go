package preamble

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/topology"
)

// clusterSetZone is the DNS zone of services of the clusterset (KEP-1645).
const clusterSetZone = ".svc.clusterset.local"

// maxShown bounds what a peer's words take in an error: the longest DNS name.
const maxShown = 255

// ErrServerName is what every error of ParseServerName is (errors.Is).
var ErrServerName = errors.New("invalid server name")

// ServerName returns the name that the inner TLS handshake asks for (SNI):
// "80.checkout.shop.svc.clusterset.local" for port 80 of the service checkout in namespace shop, and for the one copy of a headless
// service that has an address, "10-2-0-7.80.db.shop.svc.clusterset.local" or, IPv6 in full, "fd00-0000-…-0007.80.db.shop.svc.clusterset.local".
func ServerName(s topology.ServiceName, port uint16, host netip.Addr) string {
	name := strconv.Itoa(int(port)) + "." + s.String() + clusterSetZone
	if host.IsValid() {
		name = strings.NewReplacer(".", "-", ":", "-").Replace(host.StringExpanded()) + "." + name
	}
	return name
}

// ParseServerName is the inverse of ServerName. It takes nothing else: one spelling for each destination.
func ParseServerName(name string) (s topology.ServiceName, port uint16, host netip.Addr, err error) {
	none := func(err error) (topology.ServiceName, uint16, netip.Addr, error) {
		return topology.ServiceName{}, 0, netip.Addr{}, fmt.Errorf("%w: %w", ErrServerName, err)
	}
	rest, ok := strings.CutSuffix(name, clusterSetZone)
	if !ok {
		return none(fmt.Errorf("%q: want <port>.<name>.<namespace>%s", clip(name, maxShown), clusterSetZone))
	}
	number, service, ok := strings.Cut(rest, ".")
	if ok && strings.Contains(number, "-") {
		if host, err = parseHost(number); err != nil {
			return none(err)
		}
		number, service, ok = strings.Cut(service, ".")
	}
	if !ok {
		return none(fmt.Errorf("%q: no port", clip(name, maxShown)))
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != number {
		return none(fmt.Errorf("port %q: want 1 to 65535", clip(number, maxShown)))
	}
	if s, err = topology.ParseServiceName(service); err != nil {
		return none(err)
	}
	return s, uint16(n), host, nil
}

func parseHost(label string) (netip.Addr, error) {
	separator := ":"
	if strings.Count(label, "-") == net.IPv4len-1 {
		separator = "."
	}
	text := strings.ReplaceAll(label, "-", separator)
	a, err := netip.ParseAddr(text)
	if err != nil || a.StringExpanded() != text || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%q: want an IP address with dashes", clip(label, maxShown))
	}
	return a, nil
}
