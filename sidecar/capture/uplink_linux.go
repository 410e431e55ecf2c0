package capture

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// uplinks returns the indexes of the interfaces by which the main table's default routes lead. Other machines are there; pods come in by
// interfaces of their own. But for bridges: pods may be at the same one as the way out, and those are left out.
func uplinks() ([]uint32, error) {
	dump, err := syscall.NetlinkRIB(unix.RTM_GETROUTE, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("capture: routes: %w", err)
	}
	messages, err := syscall.ParseNetlinkMessage(dump)
	if err != nil {
		return nil, fmt.Errorf("capture: routes: %w", err)
	}
	var out []uint32
	for _, m := range messages {
		// rtnetlink(7): rtmsg's second byte is the length of the destination, then come table and type.
		if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg ||
			m.Data[1] != 0 || m.Data[4] != unix.RT_TABLE_MAIN || m.Data[7] != unix.RTN_UNICAST {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, fmt.Errorf("capture: routes: %w", err)
		}
		for _, a := range attributes {
			switch {
			case a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4:
				out = append(out, binary.NativeEndian.Uint32(a.Value))
			case a.Attr.Type == unix.RTA_MULTIPATH:
				out = append(out, hops(a.Value)...)
			}
		}
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(i uint32) bool { return !leadsOut(i) }), nil
}

// hops returns the interfaces of a route with several next hops: a list of struct rtnexthop, each as long as it says.
func hops(list []byte) []uint32 {
	var out []uint32
	for len(list) >= unix.SizeofRtNexthop {
		out = append(out, binary.NativeEndian.Uint32(list[4:]))
		size := (int(binary.NativeEndian.Uint16(list)) + unix.RTA_ALIGNTO - 1) &^ (unix.RTA_ALIGNTO - 1)
		if size < unix.SizeofRtNexthop || size > len(list) {
			break
		}
		list = list[size:]
	}
	return out
}

// leadsOut reports whether nothing but other machines is behind an interface.
func leadsOut(index uint32) bool {
	i, err := net.InterfaceByIndex(int(index))
	if err != nil || i.Flags&net.FlagLoopback != 0 {
		return false
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(s) }()
	info, err := unix.IoctlGetEthtoolDrvinfo(s, i.Name)
	if err != nil {
		return true // a kind of interface that has no driver
	}
	driver := unix.ByteSliceToString(info.Driver[:])
	return driver != "bridge" && driver != "openvswitch"
}

// notFrom is "meta iif INDEX return".
func notFrom(index uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(index)},
		&expr.Verdict{Kind: expr.VerdictReturn},
	}
}
