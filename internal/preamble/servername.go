package preamble

import (
	"errors"
	"fmt"
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
// "80.checkout.shop.svc.clusterset.local" for port 80 of the service checkout in namespace shop.
func ServerName(s topology.ServiceName, port uint16) string {
	return strconv.Itoa(int(port)) + "." + s.String() + clusterSetZone
}

// ParseServerName is the inverse of ServerName. It takes nothing else: one spelling for each destination.
func ParseServerName(name string) (topology.ServiceName, uint16, error) {
	rest, ok := strings.CutSuffix(name, clusterSetZone)
	if !ok {
		return topology.ServiceName{}, 0, fmt.Errorf("%w: %q: want <port>.<name>.<namespace>%s", ErrServerName, clip(name, maxShown), clusterSetZone)
	}
	number, service, ok := strings.Cut(rest, ".")
	if !ok {
		return topology.ServiceName{}, 0, fmt.Errorf("%w: %q: no port", ErrServerName, clip(name, maxShown))
	}
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil || port == 0 || strconv.FormatUint(port, 10) != number {
		return topology.ServiceName{}, 0, fmt.Errorf("%w: port %q: want 1 to 65535", ErrServerName, clip(number, maxShown))
	}
	s, err := topology.ParseServiceName(service)
	if err != nil {
		return topology.ServiceName{}, 0, fmt.Errorf("%w: %w", ErrServerName, err)
	}
	return s, uint16(port), nil
}
