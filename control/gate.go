package control

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits of who connects. Anybody can reach the listener. A connection is a stranger's until its handshake is over; then it is that of who
// has shown an SVID of the own domain, or a guest's. Whoever joins has none yet: a guest all the time that its connection lasts, which is
// the time of one call.
const (
	// maxKnown is how many connections those with an SVID have at a time: as many as config streams, and those that renew meanwhile.
	maxKnown = 24_000
	// maxKnownShare is the part of them that one SPIFFE ID may have. Many copies of a workload share an ID, so it can't be few.
	maxKnownShare = 2 // one in

	// Strangers are many at once when a control that starts again is dialed by all its programs. × strangerBytes: 64 MiB.
	maxStrangers          = 2048
	maxStrangersOfAddress = 512      // of them, from one IPv4 address or one IPv6 /64: programs of a node, or behind one NAT
	strangerBytes         = 32 << 10 // that one may send: a ClientHello and a client's chain have less than 4 KiB

	maxGuests          = 512 // at a time; × guestBytes: 64 MiB
	maxGuestsOfAddress = 64  // of them, from one address, as above
	// guestBytes is what a guest may send, its handshake included: a Join has less than 17 KiB.
	guestBytes = 128 << 10

	guestLife = 15 * time.Second // of both, from accept to close; a Join takes callTimeout at most

	// fileShare is the part of the files that this process may open which connections may take. The rest is for the disk, the bus
	// and the admin interfaces.
	fileShare = 2 // one in
	// What strangers and guests may take of those, when files are few.
	strangerShare = 4  // one in
	guestShare    = 16 // one in
)

var (
	errTooManyOfID = errors.New("too many connections of this identity")
	errTooManyOpen = errors.New("too many connections")
	errGuestBytes  = errors.New("a connection that has shown no SVID has sent more than it may")
)

// gateLimits are how many connections a gate lets be.
type gateLimits struct {
	known, knownOfID  int
	strangers, guests poolLimits
}

// poolLimits bound connections by number, in total and of one address, and each by what it may send.
type poolLimits struct {
	total, ofAddress int
	bytes            int64
}

// limitsFor returns the limits for a process that may open that many files; 0: not known.
func limitsFor(files int) gateLimits {
	l := gateLimits{
		known:     maxKnown,
		strangers: poolLimits{maxStrangers, maxStrangersOfAddress, strangerBytes},
		guests:    poolLimits{maxGuests, maxGuestsOfAddress, guestBytes},
	}
	if files > 0 {
		open := files / fileShare
		l.strangers = l.strangers.within(open / strangerShare)
		l.guests = l.guests.within(open / guestShare)
		l.known = max(1, min(l.known, open-l.strangers.total-l.guests.total))
	}
	l.knownOfID = max(1, l.known/maxKnownShare)
	return l
}

func (l poolLimits) within(total int) poolLimits {
	l.total = max(1, min(l.total, total))
	l.ofAddress = min(l.ofAddress, l.total)
	return l
}

// gate is a listener that bounds what connections cost before and after it is known whose they are. Strangers, guests and those with an
// SVID are counted apart, so that no number of the others keeps a program out. One too many makes the oldest go, of the address that has
// the most: an honest one is young. With an SVID it is the identity that has the most, if that has more than who comes: no few identities,
// be they all of one thief, keep others out. Safe for concurrent use.
type gate struct {
	net.Listener
	limits gateLimits
	shed   prometheus.Counter

	mu        sync.Mutex
	strangers pool                       // guarded by mu
	guests    pool                       // guarded by mu
	known     map[spiffeid.ID][]*visitor // guarded by mu: in the order in which it became known whose they are
	open      int                        // guarded by mu: known
}

// pool is connections of which it isn't known whose they are.
type pool struct {
	limits poolLimits
	from   map[netip.Prefix][]*visitor // by address, in the order in which they came
	count  int
}

func newPool(l poolLimits) pool { return pool{limits: l, from: make(map[netip.Prefix][]*visitor)} }

func newGate(l net.Listener, limits gateLimits, shed prometheus.Counter) *gate {
	return &gate{
		Listener: l, limits: limits, shed: shed, known: make(map[spiffeid.ID][]*visitor),
		strangers: newPool(limits.strangers), guests: newPool(limits.guests),
	}
}

// Accept returns the next connection, as a stranger's.
func (g *gate) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	v := &visitor{Conn: conn, gate: g, from: addressOf(conn), arrived: time.Now()}
	v.bounded.Store(true)
	v.left.Store(g.limits.strangers.bytes)
	g.mu.Lock()
	shed := g.strangers.enter(v)
	// It is stopped when it is known whose the connection is, or when that is closed.
	v.end = time.AfterFunc(guestLife, func() {
		if v.bounded.Load() {
			g.shed.Inc()
			_ = v.Close()
		}
	})
	g.mu.Unlock()
	g.close(shed)
	return v, nil
}

// close closes connections that were counted out already.
func (g *gate) close(shed []*visitor) {
	for _, v := range shed {
		g.shed.Inc()
		_ = v.Conn.Close()
	}
}

// enter counts a connection in and returns those that have to go for it. They are counted out already.
func (p *pool) enter(v *visitor) (shed []*visitor) {
	drop := func(old *visitor) {
		shed = append(shed, old)
		p.drop(old)
		old.end.Stop()
	}
	if of := p.from[v.from]; len(of) >= p.limits.ofAddress {
		drop(of[0])
	}
	if p.count >= p.limits.total {
		drop(p.oldestOfMost())
	}
	p.from[v.from] = append(p.from[v.from], v)
	p.count++
	return shed
}

// oldestOfMost returns the oldest connection of the address that has the most; among equals, the oldest of all. There must be one.
func (p *pool) oldestOfMost() *visitor {
	var most []*visitor
	for _, of := range p.from {
		if len(of) > len(most) || len(of) == len(most) && of[0].arrived.Before(most[0].arrived) {
			most = of
		}
	}
	return most[0]
}

// drop counts a connection out. It reports whether it was in.
func (p *pool) drop(v *visitor) bool {
	of := p.from[v.from]
	i := slices.Index(of, v)
	if i < 0 {
		return false
	}
	p.count--
	if len(of) == 1 {
		delete(p.from, v.from)
	} else {
		p.from[v.from] = slices.Delete(of, i, i+1)
	}
	return true
}

// visitor is a connection, from accept to close.
type visitor struct {
	net.Conn
	gate    *gate
	from    netip.Prefix
	arrived time.Time
	end     *time.Timer // set by Accept
	id      spiffeid.ID // guarded by gate.mu; zero: not known, or gone

	bounded atomic.Bool  // it isn't known whose it is
	left    atomic.Int64 // bytes that it may still send, while that is so
}

// guest makes a stranger a guest: its handshake is over, and has shown no SVID.
func (v *visitor) guest() error {
	g := v.gate
	g.mu.Lock()
	if !g.strangers.drop(v) {
		g.mu.Unlock()
		return net.ErrClosed // shed meanwhile
	}
	shed := g.guests.enter(v)
	v.left.Add(g.limits.guests.bytes - g.limits.strangers.bytes)
	g.mu.Unlock()
	g.close(shed)
	return nil
}

// known makes a stranger somebody, whose connection lasts.
func (v *visitor) known(id spiffeid.ID) error {
	shed, err := v.gate.admit(v, id)
	v.gate.close(shed)
	return err
}

// admit counts a stranger as somebody's, and returns who has to go for it. They are counted out already.
func (g *gate) admit(v *visitor, id spiffeid.ID) (shed []*visitor, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known[id]) >= g.limits.knownOfID {
		return nil, errTooManyOfID
	}
	var oldest *visitor
	if g.open >= g.limits.known {
		if oldest = g.oldestOfMost(); len(g.known[oldest.id]) <= len(g.known[id])+1 {
			return nil, errTooManyOpen // it would only change places
		}
	}
	if !g.strangers.drop(v) {
		return nil, net.ErrClosed // shed meanwhile
	}
	if oldest != nil {
		g.forget(oldest)
		shed = append(shed, oldest)
	}
	v.bounded.Store(false)
	v.end.Stop()
	v.id = id
	g.known[id] = append(g.known[id], v)
	g.open++
	return shed, nil
}

// oldestOfMost returns the oldest connection of the identity that has the most. There must be one. The caller holds g.mu.
func (g *gate) oldestOfMost() *visitor {
	var most []*visitor
	for _, of := range g.known {
		if len(of) > len(most) {
			most = of
		}
	}
	return most[0]
}

// forget counts a connection of somebody's out. The caller holds g.mu.
func (g *gate) forget(v *visitor) {
	g.open--
	of := g.known[v.id]
	if i := slices.Index(of, v); len(of) == 1 {
		delete(g.known, v.id)
	} else if i >= 0 {
		g.known[v.id] = slices.Delete(of, i, i+1)
	}
	v.id = spiffeid.ID{}
}

// Read reads; while it isn't known whose the connection is, no more than it may send.
func (v *visitor) Read(p []byte) (int, error) {
	n, err := v.Conn.Read(p)
	if v.bounded.Load() && v.left.Add(-int64(n)) < 0 {
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
	v.end.Stop()
	if g.strangers.drop(v) || g.guests.drop(v) || v.id.IsZero() {
		return
	}
	g.forget(v)
}

// addressOf returns where a connection comes from, as far as addresses are one's own: a network hands out IPv6 /64s as IPv4 addresses.
// Zero: it has no IP address.
func addressOf(c net.Conn) netip.Prefix { return prefixOf(c.RemoteAddr()) }

func prefixOf(remote net.Addr) netip.Prefix {
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
