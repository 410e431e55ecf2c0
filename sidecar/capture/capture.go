// Package capture makes the kernel bring an application's connections to its sidecar, without the application's doing: rules of nftables in
// a table of our own, put in force as a whole and taken out as a whole, that touch nothing but connections to the addresses named.
//
// cmd/isthmus-capture is the one user: it runs before the application does, with the right to change the network that the sidecar
// itself never has. The sidecar learns where a connection was going from the kernel (conn.Original).
//
// Source: nft(8), and nf_tables' netlink interface (linux/netfilter/nf_tables.h).
package capture

import (
	"errors"
	"fmt"
	"net/netip"
)

// Table is the name of the table; its family is inet.
const Table = "isthmus"

// Rules say what is captured. Only TCP is.
type Rules struct {
	// To are the destinations: addresses of services. Connections to others are never touched.
	To []netip.Prefix `json:"to"`
	// Port is where the sidecar takes captured connections.
	Port uint16 `json:"port"`
	// SkipUsers are user IDs whose connections are not captured: that of the sidecar first of all.
	SkipUsers []uint32 `json:"skipUsers"`
	// SkipTo and SkipPorts are destinations, among To, that are not captured all the same.
	SkipTo    []netip.Prefix `json:"skipTo,omitempty"`
	SkipPorts []uint16       `json:"skipPorts,omitempty"`
	// Node, when it is set, is an address of this machine on which the listener is: connections that come from the machine's pods are
	// captured as well as those of its own processes.
	Node netip.Addr `json:"-"`
}

// maxRules bounds how many rules there are, give or take those that stand for both families.
const maxRules = 1024

// Check says what is wrong with the rules.
func (r Rules) Check() error {
	switch {
	case len(r.To) == 0:
		return errors.New("capture: no destinations: name the addresses of services, such as 241.0.0.0/8")
	case r.Port == 0:
		return errors.New("capture: no port: where does the sidecar take captured connections?")
	}
	for _, p := range r.SkipTo {
		if !p.IsValid() {
			return errors.New("capture: an invalid prefix among the destinations that are left out")
		}
	}
	if len(r.To)+len(r.SkipTo)+len(r.SkipPorts)+len(r.SkipUsers) > maxRules {
		return fmt.Errorf("capture: more than %d destinations, ports and users: each is a rule that every new connection is compared with", maxRules)
	}
	for _, p := range r.To {
		switch {
		case !p.IsValid():
			return errors.New("capture: an invalid prefix among the destinations")
		case p.Bits() == 0:
			return fmt.Errorf("capture: %s is everything: only addresses of services may be captured", p)
		case p.Overlaps(netip.MustParsePrefix("127.0.0.0/8")) || p.Contains(netip.IPv6Loopback()):
			return fmt.Errorf("capture: %s holds loopback addresses: what stays on the machine's own loopback is never captured", p)
		case r.Node.IsValid() && r.Node.Unmap().Is4() == p.Addr().Is4() && p.Contains(r.Node.Unmap()):
			return fmt.Errorf("capture: %s holds %s, to which captured connections go", p, r.Node)
		}
	}
	return nil
}
