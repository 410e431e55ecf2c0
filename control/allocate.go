package control

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"

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

// allocate gives every wanted service an address in cidr, and returns the services that got none because it is full.
//
// Whoever has an address keeps it. A new one gets the first free address from the hash of its name on, so that a control plane that
// lost its state, or another one, comes to the same answer as long as no two names collide. keepAll holds on to the addresses
// of services that are not wanted now: not every source has spoken yet.
//
// It is pure.
func allocate(last allocation, wanted []topology.ServiceName, cidr netip.Prefix, keepAll bool) (allocation, []topology.ServiceName) {
	isWanted := make(map[topology.ServiceName]struct{}, len(wanted))
	for _, s := range wanted {
		isWanted[s] = struct{}{}
	}
	next := make(allocation, len(wanted))
	taken := make(map[netip.Addr]struct{}, len(wanted))
	for _, s := range slices.SortedFunc(maps.Keys(last), topology.ServiceName.Compare) {
		a := last[s]
		_, want := isWanted[s]
		_, twice := taken[a]
		if cidr.Contains(a) && !twice && (want || keepAll) {
			next[s] = a
			taken[a] = struct{}{}
		}
	}
	var none []topology.ServiceName
	for _, s := range slices.SortedFunc(maps.Keys(isWanted), topology.ServiceName.Compare) {
		if _, has := next[s]; has {
			continue
		}
		a, ok := firstFree(cidr, s, taken)
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
func firstFree(cidr netip.Prefix, s topology.ServiceName, taken map[netip.Addr]struct{}) (netip.Addr, bool) {
	size := uint64(1)<<min(hostBits(cidr), maxHostBits) - 2
	sum := sha256.Sum256([]byte(s.String()))
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
func readAllocation(path string) (allocation, error) {
	data, err := atomicfile.Read(path, maxAllocationsIn)
	if errors.Is(err, fs.ErrNotExist) {
		return allocation{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("control: clusterset addresses: %w", err)
	}
	a := allocation{}
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("control: clusterset addresses: %s: %w", path, err)
	}
	return a, nil
}

func writeAllocation(path string, a allocation) error {
	data, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return fmt.Errorf("control: clusterset addresses: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("control: clusterset addresses: %w", err)
	}
	return nil
}
