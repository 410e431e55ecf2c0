package gateway

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// When a peer's gateway dies and its machine lives, that machine says of the next packet that nobody listens there (ICMP, port unreachable): half a
// second before silence proves as much. The kernel tells a socket that asked for it (IP_RECVERR, ip(7)), with the beginning of the packet that
// was refused. Anybody can send ICMP, from wherever; but who has not seen the packet can't know how it begins, because QUIC encrypts it. So a
// refusal that quotes one of the last packets of the connection is as good as a reset of TCP, and others are not believed.
const (
	// fingerprintSize is how much of a packet is remembered, and how much a refusal has to quote: a connection ID and eleven encrypted bytes at
	// least. RFC 1122 wants eight bytes beside the header of UDP, RFC 1812 as much as fits into 576; Linux quotes that.
	fingerprintSize = 16
	// maxFingerprints is how many packets are remembered: what is on its way to who has just died. A burst that is given to the kernel as one
	// counts as one.
	maxFingerprints = 256
	// maxQuote is how much of a refusal is read.
	maxQuote = 64
	// maxAgain is how often a packet is tried again that the kernel fails for earlier ones: more may be refused meanwhile.
	maxAgain = 8
)

type fingerprint [fingerprintSize]byte

// refusals finds out that a peer's machine refuses the packets of a socket. Safe for concurrent use.
type refusals struct {
	told func() // called for each that is believed; must not block

	mu   sync.Mutex
	sent [maxFingerprints]fingerprint // guarded by mu
	n    int                          // guarded by mu; packets ever
}

// listen asks the kernel for refusals on c, and has told called for those of what c has sent. Call it before c is used.
func (r *receiver) listen(told func()) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	// A socket of IPv6 carries IPv4, too; one of IPv4 does not know the second option.
	asked := false
	_ = raw.Control(func(fd uintptr) {
		asked = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1) == nil
		asked = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1) == nil || asked
	})
	if asked {
		r.refusals = &refusals{told: told}
	}
}

// WriteMsgUDP sends, as a UDP socket does. It is what quic-go calls. What the kernel was told of packets before this one it says once, as the
// failure of whatever call comes next; that one is made again.
func (r *receiver) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	if r.refusals == nil {
		return r.UDPConn.WriteMsgUDP(b, oob, addr)
	}
	r.refusals.note(b)
	n, oobn, err = r.UDPConn.WriteMsgUDP(b, oob, addr)
	for again := 0; again < maxAgain && err != nil && r.pending(err) && !errors.Is(err, unix.EMSGSIZE); again++ { // that one is of this packet
		n, oobn, err = r.UDPConn.WriteMsgUDP(b, oob, addr)
	}
	return n, oobn, err
}

// note remembers a packet.
func (s *refusals) note(b []byte) {
	if len(b) < fingerprintSize {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent[s.n%maxFingerprints] = fingerprint(b)
	s.n++
}

// knows reports whether a packet that was sent lately begins like that.
func (s *refusals) knows(quote []byte) bool {
	if len(quote) < fingerprintSize {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range min(s.n, maxFingerprints) {
		if s.sent[i] == fingerprint(quote) {
			return true
		}
	}
	return false
}

// pending reports whether err, of a call on the socket, says what became of earlier packets. It takes all that there is to hear of those.
func (r *receiver) pending(err error) bool {
	if r.refusals == nil {
		return false
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return false
	}
	raw, err := r.SyscallConn()
	if err != nil {
		return false
	}
	heard, refused := isTold(errno), false
	quote, control := make([]byte, maxQuote), make([]byte, controlSize)
	_ = raw.Control(func(fd uintptr) {
		for {
			n, nn, _, _, err := unix.Recvmsg(int(fd), quote, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return
			}
			heard = true
			refused = refused || isRefusal(control[:nn]) && r.refusals.knows(quote[:n])
		}
	})
	if refused {
		r.refusals.told()
	}
	return heard
}

// isTold reports whether errno is one that ICMP stands behind. The kernel may tell who reads and who writes, each of another packet, and one of them
// takes all that there is to hear before the other looks: quic-go would give up the connection for what a stranger sent.
func isTold(errno syscall.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENONET, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EPROTO, unix.EACCES, unix.EMSGSIZE:
		return true // icmp_err_convert, icmpv6_err_convert
	default:
		return false
	}
}

// isRefusal reports whether what the kernel says of a packet is that nobody listens where it went, and that the other machine said so.
func isRefusal(control []byte) bool {
	for len(control) > 0 {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return false
		}
		isError := header.Level == unix.IPPROTO_IP && header.Type == unix.IP_RECVERR || header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_RECVERR
		if isError && len(data) >= 5 { // struct sock_extended_err
			errno, origin := binary.NativeEndian.Uint32(data), data[4]
			return errno == uint32(unix.ECONNREFUSED) && (origin == unix.SO_EE_ORIGIN_ICMP || origin == unix.SO_EE_ORIGIN_ICMP6)
		}
		control = rest
	}
	return false
}
