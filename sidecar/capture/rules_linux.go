package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Install puts the rules in force in this network namespace, in place of those that were, at once: there is no moment without
// the one or the other. It needs CAP_NET_ADMIN.
func Install(r Rules) error {
	if err := r.Check(); err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	table := replace(c)
	output := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	for _, user := range r.SkipUsers { // of what comes from elsewhere nobody here knows the user
		c.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: skipUser(user)})
	}
	chains := []*nftables.Chain{output}
	if r.Node.IsValid() {
		out, err := uplinks()
		if err != nil {
			return err
		}
		prerouting := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		for _, index := range out { // another machine's connections would be made as the node proxy's
			c.AddRule(&nftables.Rule{Table: table, Chain: prerouting, Exprs: notFrom(index)})
		}
		chains = append(chains, prerouting)
	}
	for _, chain := range chains {
		for _, p := range r.SkipTo {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(to(p.Masked()), &expr.Verdict{Kind: expr.VerdictReturn})})
		}
		for _, port := range r.SkipPorts {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: skipPort(port)})
		}
		for _, p := range r.To {
			exprs := to(p.Masked())
			if r.Node.IsValid() {
				if r.Node.Unmap().Is4() != p.Addr().Is4() {
					continue // there is no way from the one family to the other
				}
				exprs = append(exprs, dnat(netip.AddrPortFrom(r.Node.Unmap(), r.Port))...)
			} else {
				exprs = append(exprs, redirect(r.Port)...)
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("capture: nftables: %w (it needs CAP_NET_ADMIN, and a kernel with nf_tables and NAT)", err)
	}
	return nil
}

// Remove takes the rules out. Where there are none it does nothing.
func Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	c.DelTable(&nftables.Table{Name: Table, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("capture: nftables: %w", err)
	}
	return nil
}

// replace begins a batch with an empty table, whether there was one or not: adding one that is there changes nothing, so that
// deleting it never fails.
func replace(c *nftables.Conn) *nftables.Table {
	table := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	c.AddTable(table)
	c.DelTable(table)
	return c.AddTable(&nftables.Table{Name: Table, Family: nftables.TableFamilyINet})
}

// skipUser is "meta skuid UID return".
func skipUser(uid uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uid)},
		&expr.Verdict{Kind: expr.VerdictReturn},
	}
}

// skipPort is "tcp dport PORT return".
func skipPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, // RFC 9293: the destination's place in the header
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Verdict{Kind: expr.VerdictReturn},
	}
}

// to is "meta nfproto FAMILY meta l4proto tcp ip daddr PREFIX".
func to(p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16) // RFC 791: the destination's place in the header
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24 // RFC 8200
	}
	address := p.Addr().AsSlice()
	size := uint32(len(address)) //nolint:gosec // G115: 4 or 16
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address},
	}
}

// redirect is "redirect to :PORT": to the loopback address, for what was opened in this network namespace.
func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}

// dnat is "dnat to ADDRESS:PORT". A redirect would need an address on the interface that the connection comes in by, and those of
// pods often have none.
func dnat(a netip.AddrPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if a.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: a.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, a.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	}
}
