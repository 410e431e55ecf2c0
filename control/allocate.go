package control

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	minHostBits      = 4        // of a clusterset CIDR: 14 addresses
	maxHostBits      = 48       // of a larger one, the rest is not used
	maxAllocationsIn = 64 << 20 // bytes of the file that we wrote
)

// allocation is which address each import has. Immutable.
type allocation map[topology.ServiceName]netip.Addr

// hostAllocation is which address stands here for a copy of a headless service of another cluster, whose own can't be used. Immutable.
type hostAllocation map[hostKey]netip.Addr

// hostKey is a copy of a headless service in another cluster.
type hostKey struct {
	service topology.ServiceName
	topology.HostRef
}

// String returns "<address with dashes>.<cluster>.<name>.<namespace>", which no service is called.
func (k hostKey) String() string {
	return topology.DashedAddress(k.Address) + "." + k.Cluster.String() + "." + k.service.String()
}

// parseHostKey is the inverse of String.
func parseHostKey(s string) (k hostKey, err error) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) != 3 {
		return k, fmt.Errorf("%q is no copy of a service", s)
	}
	if k.Address, err = netip.ParseAddr(strings.ReplaceAll(parts[0], "-", ".")); err != nil {
		k.Address, err = netip.ParseAddr(strings.ReplaceAll(parts[0], "-", ":"))
	}
	if err == nil {
		k.Cluster, err = topology.ParseClusterName(parts[1])
	}
	if err == nil {
		k.service, err = topology.ParseServiceName(parts[2])
	}
	return k, err
}

// allocate gives every wanted service an address in cidr, and returns the services that got none because it is full.
//
// Whoever has an address keeps it. A new one gets the first free address from the hash of its name on, so that a control plane that
// lost its state, or another one, comes to the same answer as long as no two names collide. keepAll holds on to the addresses
// of services that are not wanted now: not every source has spoken yet. Addresses of hosts are theirs.
//
// It is pure.
func allocate(last allocation, wanted []topology.ServiceName, cidr netip.Prefix, keepAll bool, hosts hostAllocation) (allocation, []topology.ServiceName) {
	return assign(last, wanted, cidr, keepAll, maps.Values(hosts))
}

// allocateHosts does the same for copies of headless services, beside the addresses of imports.
func allocateHosts(last hostAllocation, wanted []hostKey, cidr netip.Prefix, keepAll bool, services allocation) (hostAllocation, []hostKey) {
	return assign(last, wanted, cidr, keepAll, maps.Values(services))
}

func assign[M ~map[K]netip.Addr, K interface {
	comparable
	fmt.Stringer
}](last M, wanted []K, cidr netip.Prefix, keepAll bool, others iter.Seq[netip.Addr]) (M, []K) {
	byName := func(a, b K) int { return cmp.Compare(a.String(), b.String()) }
	isWanted := make(map[K]struct{}, len(wanted))
	for _, s := range wanted {
		isWanted[s] = struct{}{}
	}
	next := make(M, len(wanted))
	taken := make(map[netip.Addr]struct{}, len(wanted))
	for a := range others {
		taken[a] = struct{}{}
	}
	for _, s := range slices.SortedFunc(maps.Keys(last), byName) {
		a := last[s]
		_, want := isWanted[s]
		_, twice := taken[a]
		if cidr.Contains(a) && !twice && (want || keepAll) {
			next[s] = a
			taken[a] = struct{}{}
		}
	}
	var none []K
	for _, s := range slices.SortedFunc(maps.Keys(isWanted), byName) {
		if _, has := next[s]; has {
			continue
		}
		a, ok := firstFree(cidr, s.String(), taken)
		if !ok {
			none = append(none, s)
			continue
		}
		next[s] = a
		taken[a] = struct{}{}
	}
	return next, none
}

// firstFree walks the range from the hash of the name on, around, without its first and last address: the network's and the
// broadcast address.
func firstFree(cidr netip.Prefix, name string, taken map[netip.Addr]struct{}) (netip.Addr, bool) {
	size := uint64(1)<<min(hostBits(cidr), maxHostBits) - 2
	sum := sha256.Sum256([]byte(name))
	start := binary.BigEndian.Uint64(sum[:8]) % size
	for i := range size {
		a := at(cidr, 1+(start+i)%size)
		if _, used := taken[a]; !used {
			return a, true
		}
		if i > uint64(len(taken)) {
			break // can't be: more steps than addresses are taken
		}
	}
	return netip.Addr{}, false
}

func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// at returns the address that lies offset above the prefix.
func at(p netip.Prefix, offset uint64) netip.Addr {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(offset)) //nolint:gosec // at most 2³²
		return netip.AddrFrom4(b)
	}
	b := p.Addr().As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low+offset) // the host part has at most maxHostBits: no carry
	return netip.AddrFrom16(b)
}

// readAllocation reads what writeAllocation wrote; a file that isn't there is an empty allocation.
func readAllocation(path string) (allocation, hostAllocation, error) {
	services, hosts := allocation{}, hostAllocation{}
	data, err := atomicfile.Read(path, maxAllocationsIn)
	if errors.Is(err, fs.ErrNotExist) {
		return services, hosts, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("control: clusterset addresses: %w", err)
	}
	var all map[string]netip.Addr
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, nil, fmt.Errorf("control: clusterset addresses: %s: %w", path, err)
	}
	for name, a := range all {
		if s, err := topology.ParseServiceName(name); err == nil {
			services[s] = a
			continue
		}
		k, err := parseHostKey(name)
		if err != nil {
			return nil, nil, fmt.Errorf("control: clusterset addresses: %s: %w", path, err)
		}
		hosts[k] = a
	}
	return services, hosts, nil
}

// writeAllocation puts both into one file, by name.
func writeAllocation(path string, services allocation, hosts hostAllocation) error {
	all := make(map[string]netip.Addr, len(services)+len(hosts))
	for s, a := range services {
		all[s.String()] = a
	}
	for k, a := range hosts {
		all[k.String()] = a
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("control: clusterset addresses: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("control: clusterset addresses: %w", err)
	}
	return nil
}
