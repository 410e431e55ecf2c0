// Package netns makes networks out of network namespaces: sites with hosts, each host a namespace with an address of its own. Sites are joined by
// TUN devices, whose packets somebody else carries (internal/wan), and so is the machine itself.
//
// It runs the command ip (iproute2) and needs root. Everything it makes has the network's name in its own, and is found again by it.
package netns

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"
)

// packets is how many wait for whoever carries them, on each device: losses are to be those that somebody asked for.
const packets = 10_000

// Device is the name of the TUN device in each site's own namespace.
const Device = "wan0"

// ErrUnavailable says that this machine, or this user, can't have such networks.
var ErrUnavailable = errors.New("network namespaces can't be had")

// The addresses of all networks are in 198.18.0.0/15, which RFC 2544 sets aside for measuring: nobody routes it. Each has a part of it, by its
// name, so that several stand side by side; of one in sixteen the part is the same, and then the second can't be made.
const (
	parts     = 16
	partBits  = 19
	partSites = 1 << (24 - partBits) // of 256 addresses each, the first of them the machine's
	maxSites  = partSites - 1
	maxHosts  = 200
)

// Network is what is wanted. Names are made of letters, digits and dashes.
type Network struct {
	Name  string // unique on the machine, and at most 15 bytes: an interface has it
	Sites []Site
}

// Site is a place with hosts.
type Site struct {
	Name  string
	Hosts []string
}

func (n Network) check() error {
	if len(n.Name) == 0 || len(n.Name) > 15 {
		return fmt.Errorf("netns: network %q: want a name of 1 to 15 bytes", n.Name)
	}
	if len(n.Sites) > maxSites {
		return fmt.Errorf("netns: %d sites, at most %d", len(n.Sites), maxSites)
	}
	for _, s := range n.Sites {
		if len(s.Hosts) > maxHosts {
			return fmt.Errorf("netns: site %s has %d hosts, at most %d", s.Name, len(s.Hosts), maxHosts)
		}
	}
	return nil
}

// Whole holds the addresses of all sites.
func (n Network) Whole() netip.Prefix { return netip.PrefixFrom(n.block(0), partBits) }

// Prefix is where the addresses of a site's hosts are from; i is its place among the sites.
func (n Network) Prefix(i int) netip.Prefix { return netip.PrefixFrom(n.block(i+1), 24) }

// block is the first of 256 addresses.
func (n Network) block(i int) netip.Addr {
	h := fnv.New32a()
	_, _ = h.Write([]byte(n.Name))
	at := int(h.Sum32()%parts)*partSites + i
	return netip.AddrFrom4([4]byte{198, byte(18 + at>>8), byte(at), 0}) //nolint:gosec // G115: parts × partSites are 512
}

// Machine is the address of the machine itself in the network, on a device of the network's name.
func (n Network) Machine() netip.Addr { return n.block(0).Next() }

// Router is the namespace of a site's own: its Device is there.
func (n Network) Router(site string) string { return n.Name + "-" + site }

// Host is the namespace of a host.
func (n Network) Host(site, host string) string { return n.Name + "-" + site + "-" + host }

// Address is that of a host; it is not valid where there is no such host.
func (n Network) Address(site, host string) netip.Addr {
	for i, s := range n.Sites {
		if s.Name != site {
			continue
		}
		for j, h := range s.Hosts {
			if h == host {
				a := n.Prefix(i).Addr().As4()
				a[3] = byte(10 + j)
				return netip.AddrFrom4(a)
			}
		}
	}
	return netip.Addr{}
}

// Path is the file that a namespace stands for.
func Path(namespace string) string { return "/run/netns/" + namespace }

// plan is what ip has to do to make the namespaces and the wires in them; batch by batch, each in one namespace ("" is the machine's).
type batch struct {
	namespace string
	commands  []string
}

func (n Network) namespaces() (out []string) {
	for _, s := range n.Sites {
		out = append(out, n.Router(s.Name))
		for _, h := range s.Hosts {
			out = append(out, n.Host(s.Name, h))
		}
	}
	return out
}

func (n Network) plan() []batch {
	var add batch
	for _, ns := range n.namespaces() {
		add.commands = append(add.commands, "netns add "+ns)
	}
	plan := []batch{add}
	for i, s := range n.Sites {
		router := n.Router(s.Name)
		gateway := n.Prefix(i).Addr().Next()
		wires := batch{namespace: router, commands: []string{
			"link set lo up", "link add br0 type bridge", fmt.Sprintf("addr add %s/24 dev br0", gateway), "link set br0 up",
		}}
		var hosts []batch
		for j, h := range s.Hosts {
			host := n.Host(s.Name, h)
			wires.commands = append(wires.commands,
				fmt.Sprintf("link add h%d type veth peer name eth0 netns %s", j, host), fmt.Sprintf("link set h%d master br0 up", j))
			hosts = append(hosts, batch{namespace: host, commands: []string{
				"link set lo up", fmt.Sprintf("addr add %s/24 dev eth0", n.Address(s.Name, h)), "link set eth0 up", fmt.Sprintf("route add default via %s", gateway),
			}})
		}
		plan = append(append(plan, wires), hosts...)
	}
	return plan
}

// attach is what ip has to do once the TUN devices are there.
func (n Network) attach() []batch {
	plan := []batch{{commands: []string{
		fmt.Sprintf("addr add %s/32 dev %s", n.Machine(), n.Name), fmt.Sprintf("link set %s txqueuelen %d up", n.Name, packets),
		fmt.Sprintf("route add %s dev %s src %s", n.Whole(), n.Name, n.Machine()),
	}}}
	for _, s := range n.Sites {
		plan = append(plan, batch{namespace: n.Router(s.Name), commands: []string{fmt.Sprintf("link set %s txqueuelen %d up", Device, packets), "route add default dev " + Device}})
	}
	return plan
}

func (b batch) String() string { return strings.Join(b.commands, "\n") + "\n" }
