package control

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits of who connects. Anybody can reach the listener, and is a guest until a handshake has shown an SVID of the own domain. Whoever
// joins has none yet: a guest all the time that its connection lasts, which is the time of one call.
const (
	// maxKnown is how many connections those with an SVID have at a time: as many as config streams, and those that renew meanwhile.
	maxKnown = 24_000
	// maxKnownShare is the part of them that one SPIFFE ID may have. Many copies of a workload share an ID, so it can't be few.
	maxKnownShare = 2 // one in

	maxGuests          = 512 // at a time; × guestBytes: 64 MiB
	maxGuestsOfAddress = 64  // of them, from one IPv4 address or one IPv6 /64: the programs that start on a node, or behind one NAT
	// guestBytes is what a guest may send, TLS and HTTP/2 included: a Join has less than 17 KiB, a handshake less than 8.
	guestBytes = 128 << 10
	guestLife  = 15 * time.Second // from accept to close; a Join takes callTimeout at most

	// fileShare is the part of the files that this process may open which connections may take. The rest is for the disk, the bus
	// and the admin interfaces.
	fileShare = 2 // one in
	// guestShare is the part of those that guests may take, when files are few.
	guestShare = 8 // one in
)

var (
	errTooManyOfID = errors.New("too many connections of this identity")
	errTooManyOpen = errors.New("too many connections")
	errGuestBytes  = fmt.Errorf("a connection without an SVID has sent more than %d bytes", guestBytes)
)

// gateLimits are how many connections a gate lets be.
type gateLimits struct {
	known, knownOfID        int
	guests, guestsOfAddress int
	guestBytes              int64
	guestLife               time.Duration
}

// limitsFor returns the limits for a process that may open that many files; 0: not known.
func limitsFor(files int) gateLimits {
	l := gateLimits{
		known: maxKnown, guests: maxGuests, guestsOfAddress: maxGuestsOfAddress, guestBytes: guestBytes, guestLife: guestLife,
	}
	if files > 0 {
		open := files / fileShare
		l.guests = max(1, min(l.guests, open/guestShare))
		l.guestsOfAddress = min(l.guestsOfAddress, l.guests)
		l.known = max(1, min(l.known, open-l.guests))
	}
	l.knownOfID = max(1, l.known/maxKnownShare)
	return l
}

// gate is a listener that bounds what connections cost before and after it is known whose they are. Guests and those with an SVID are
// counted apart, so that no number of guests keeps a program out. One guest too many makes the oldest go, of the address that has the
// most: an honest guest is a young one. Safe for concurrent use.
type gate struct {
	net.Listener
	limits gateLimits
	shed   prometheus.Counter

	mu     sync.Mutex
	guests map[netip.Prefix][]*visitor // guarded by mu: by address, oldest first
	count  int                         // guarded by mu: guests
	known  map[spiffeid.ID]int         // guarded by mu
	open   int                         // guarded by mu: known
}

func newGate(l net.Listener, limits gateLimits, shed prometheus.Counter) *gate {
	return &gate{Listener: l, limits: limits, shed: shed, guests: make(map[netip.Prefix][]*visitor), known: make(map[spiffeid.ID]int)}
}

// Accept returns the next connection, as a guest's.
func (g *gate) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	v := &visitor{Conn: conn, gate: g, from: addressOf(conn)}
	v.guest.Store(true)
	v.left.Store(g.limits.guestBytes)
	for _, old := range g.enter(v) {
		g.shed.Inc()
		_ = old.Conn.Close()
	}
	return v, nil
}

// enter counts a guest in and returns those that have to go for it. They are counted out already.
func (g *gate) enter(v *visitor) (shed []*visitor) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if of := g.guests[v.from]; len(of) >= g.limits.guestsOfAddress {
		shed = append(shed, of[0])
		g.drop(of[0])
	}
	if g.count >= g.limits.guests {
		old := g.oldestOfMost()
		shed = append(shed, old)
		g.drop(old)
	}
	g.guests[v.from] = append(g.guests[v.from], v)
	g.count++
	v.arrived = time.Now()
	// It is stopped when the guest leaves: nothing that was counted out is closed by it.
	v.end = time.AfterFunc(g.limits.guestLife, func() {
		if v.guest.Load() {
			g.shed.Inc()
			_ = v.Close()
		}
	})
	return shed
}

// oldestOfMost returns the oldest guest of the address that has the most; among equals, the oldest of all. Called with mu held, and guests.
func (g *gate) oldestOfMost() *visitor {
	var most []*visitor
	for _, of := range g.guests {
		if len(of) > len(most) || len(of) == len(most) && of[0].arrived.Before(most[0].arrived) {
			most = of
		}
	}
	return most[0]
}

// drop counts a guest out. Called with mu held; it reports whether the guest was in.
func (g *gate) drop(v *visitor) bool {
	of := g.guests[v.from]
	i := slices.Index(of, v)
	if i < 0 {
		return false
	}
	v.end.Stop()
	g.count--
	if len(of) == 1 {
		delete(g.guests, v.from)
	} else {
		g.guests[v.from] = slices.Delete(of, i, i+1)
	}
	return true
}

// visitor is a connection, from accept to close.
type visitor struct {
	net.Conn
	gate *gate
	from netip.Prefix
	id   spiffeid.ID // guarded by gate.mu; zero: a guest, or gone

	arrived time.Time   // set by enter
	end     *time.Timer // set by enter
	guest   atomic.Bool
	left    atomic.Int64 // bytes that a guest may still send
}

// known makes a guest somebody, whose connection lasts.
func (v *visitor) known(id spiffeid.ID) error {
	g := v.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.known[id] >= g.limits.knownOfID:
		return errTooManyOfID
	case g.open >= g.limits.known:
		return errTooManyOpen
	case !g.drop(v):
		return net.ErrClosed // shed meanwhile
	}
	v.guest.Store(false)
	v.id = id
	g.known[id]++
	g.open++
	return nil
}

// Read reads; of a guest, no more than it may send.
func (v *visitor) Read(p []byte) (int, error) {
	n, err := v.Conn.Read(p)
	if v.guest.Load() && v.left.Add(-int64(n)) < 0 {
		_ = v.Close()
		return 0, errGuestBytes
	}
	return n, err
}

// Close closes the connection and counts it out.
func (v *visitor) Close() error {
	v.gate.leave(v)
	return v.Conn.Close()
}

func (g *gate) leave(v *visitor) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(v)
	if v.id.IsZero() {
		return
	}
	g.open--
	if g.known[v.id]--; g.known[v.id] == 0 {
		delete(g.known, v.id)
	}
	v.id = spiffeid.ID{}
}

// addressOf returns where a connection comes from, as far as addresses are one's own: a network hands out IPv6 /64s as IPv4 addresses.
// Zero: it has no IP address.
func addressOf(c net.Conn) netip.Prefix {
	remote := c.RemoteAddr()
	if remote == nil {
		return netip.Prefix{}
	}
	ap, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return netip.Prefix{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
