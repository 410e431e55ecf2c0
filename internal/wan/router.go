// Package wan is a wide-area network for tests and for the playground: a router in user space between sites, which delays, loses, reorders,
// duplicates, throttles and cuts off packets, one direction of each pair of sites by itself, and can be told otherwise while it runs.
//
// It takes and gives whole IP packets, by the packet, so that the kernels' TCP and the programs' QUIC react to it as they would to a real one.
// On Linux, Open gives a site its packets by a TUN device in a network namespace.
package wan

import (
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// maxPacket bounds a packet, in bytes: what IP allows.
const maxPacket = 1 << 16

// Stats count the packets of one direction.
type Stats struct {
	Passed, Lost, Duplicated, Reordered uint64
	Overflowed                          uint64 // the queue for its turn was full
	Cut                                 uint64 // the link was down
	Refused                             uint64 // the site would not take it
}

// Router joins sites. Its methods may be called at any time, by several goroutines.
type Router struct {
	sites []*site
	lanes map[[2]string]*lane
}

// site is a place with addresses.
type site struct {
	name     string
	prefixes []netip.Prefix
	device   io.ReadWriter
}

// Site is what a Router is made of. Device gives one whole IP packet a Read and takes one a Write, as a TUN device does.
type Site struct {
	Name     string
	Prefixes []netip.Prefix
	Device   io.ReadWriter
}

// New returns a Router between sites, of which every link is perfect. The same seed loses the same packets, as far as they come in the
// same order.
func New(seed uint64, sites ...Site) (*Router, error) {
	r := &Router{lanes: make(map[[2]string]*lane)}
	for i, s := range sites {
		for _, other := range r.sites {
			if other.name == s.Name {
				return nil, fmt.Errorf("wan: two sites are called %q", s.Name)
			}
			for _, p := range s.Prefixes {
				for _, q := range other.prefixes {
					if p.Overlaps(q) {
						return nil, fmt.Errorf("wan: sites %q and %q: %s overlaps %s", other.name, s.Name, q, p)
					}
				}
			}
		}
		n := &site{name: s.Name, prefixes: s.Prefixes, device: s.Device}
		for j, other := range r.sites {
			r.lanes[[2]string{n.name, other.name}] = newLane(other, seed, i, j)
			r.lanes[[2]string{other.name, n.name}] = newLane(n, seed, j, i)
		}
		r.sites = append(r.sites, n)
	}
	return r, nil
}

// Set makes the direction from one site to another what l says, from the next packet on. Packets under way go on as before, unless it is down.
func (r *Router) Set(from, to string, l Link) error {
	d := r.lanes[[2]string{from, to}]
	if d == nil {
		return fmt.Errorf("wan: no link from %q to %q", from, to)
	}
	d.set(l)
	return nil
}

// Stats returns what became of the packets from one site to another; zeros when there is no such link.
func (r *Router) Stats(from, to string) Stats {
	d := r.lanes[[2]string{from, to}]
	if d == nil {
		return Stats{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Run carries packets until ctx ends or a device fails. Devices that block in Read are the caller's to close when ctx ends.
func (r *Router) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error // guarded by mu
	)
	failed := func(err error) {
		if err != nil && ctx.Err() == nil {
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		}
		cancel()
	}
	for _, d := range r.lanes {
		wg.Go(func() { d.run(ctx) })
	}
	for _, s := range r.sites {
		wg.Go(func() { failed(r.read(ctx, s)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// read takes the packets that leave a site.
func (r *Router) read(ctx context.Context, from *site) error {
	buffer := make([]byte, maxPacket)
	for ctx.Err() == nil {
		n, err := from.device.Read(buffer)
		if err != nil {
			return fmt.Errorf("wan: site %s: %w", from.name, err)
		}
		packet := buffer[:n]
		to := r.siteOf(packet)
		if to == nil || to == from || !age(packet) {
			continue
		}
		r.lanes[[2]string{from.name, to.name}].take(append([]byte(nil), packet...))
	}
	return nil
}

// siteOf returns where a packet goes; nil when that is nowhere.
func (r *Router) siteOf(packet []byte) *site {
	to, ok := destination(packet)
	if !ok {
		return nil
	}
	for _, s := range r.sites {
		for _, p := range s.prefixes {
			if p.Contains(to) {
				return s
			}
		}
	}
	return nil
}

const (
	ipv4Header = 20
	ipv6Header = 40
)

// destination reads where an IP packet goes (RFC 791 section 3.1, RFC 8200 section 3).
func destination(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= ipv4Header && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[16:20])), true
	case len(p) >= ipv6Header && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[24:40])), true
	default:
		return netip.Addr{}, false
	}
}

// isUDP reads what an IP packet carries; of IPv6, where nothing stands between.
func isUDP(p []byte) bool {
	const udp = 17
	switch {
	case len(p) >= ipv4Header && p[0]>>4 == 4:
		return p[9] == udp
	case len(p) >= ipv6Header && p[0]>>4 == 6:
		return p[6] == udp
	default:
		return false
	}
}

// age takes one hop off a packet, as a router has to, so that none goes round for ever; false when it has none left.
func age(p []byte) bool {
	if p[0]>>4 == 6 {
		if p[7] <= 1 {
			return false
		}
		p[7]--
		return true
	}
	if p[8] <= 1 {
		return false
	}
	p[8]--
	// The checksum changes by what the word with the TTL does (RFC 1141).
	sum := uint32(binary.BigEndian.Uint16(p[10:12])) + 0x0100
	binary.BigEndian.PutUint16(p[10:12], uint16(sum+sum>>16)) //nolint:gosec // G115: the carry is in it
	return true
}

// lane is one direction of a link: what it is now, and what is under way.
type lane struct {
	to *site

	mu    sync.Mutex
	link  Link       // guarded by mu
	luck  *rand.Rand // guarded by mu
	queue flight     // guarded by mu; by arrival
	count uint64     // guarded by mu; of packets, to keep those in order that arrive together
	last  time.Time  // guarded by mu; when the last one arrives that keeps its order
	free  time.Time  // guarded by mu; when the rate lets the next one through
	stats Stats      // guarded by mu
	wake  chan struct{}
}

func newLane(to *site, seed uint64, i, j int) *lane {
	return &lane{to: to, luck: rand.New(rand.NewPCG(seed, uint64(i)<<32|uint64(j))), wake: make(chan struct{}, 1)} //nolint:gosec // G404, G115: for tests, small numbers
}

func (d *lane) set(l Link) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.link = l
	if l.Down {
		d.stats.Cut += uint64(len(d.queue))
		d.queue, d.last, d.free = nil, time.Time{}, time.Time{}
	}
}

// take sends a packet on its way, or loses it.
func (d *lane) take(packet []byte) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.link
	if l.Down || l.NoUDP && isUDP(packet) {
		d.stats.Cut++
		return
	}
	if l.Loss > 0 && d.luck.Float64() < l.Loss {
		d.stats.Lost++
		return
	}
	copies := 1
	if l.Duplicate > 0 && d.luck.Float64() < l.Duplicate {
		d.stats.Duplicated++
		copies = 2
	}
	for range copies {
		d.send(packet, now, l)
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// send finds out when a packet arrives. The caller holds d.mu.
func (d *lane) send(packet []byte, now time.Time, l Link) {
	sent := now
	if l.Rate > 0 {
		if d.free.Before(now) {
			d.free = now
		}
		waiting := d.free.Sub(now).Seconds() * float64(l.Rate) / 8
		if waiting > float64(l.queue()) {
			d.stats.Overflowed++
			return
		}
		d.free = d.free.Add(time.Duration(int64(len(packet)) * 8 * int64(time.Second) / l.Rate))
		sent = d.free
	}
	at := sent.Add(l.Delay)
	if l.Jitter > 0 {
		at = at.Add(time.Duration(d.luck.Int64N(int64(l.Jitter) + 1)))
	}
	if l.Reorder > 0 && d.luck.Float64() < l.Reorder {
		d.stats.Reordered++
		at = sent
	} else {
		if at.Before(d.last) {
			at = d.last
		}
		d.last = at
	}
	d.count++
	heap.Push(&d.queue, &arrival{at: at, count: d.count, packet: packet})
}

// run delivers packets when they arrive.
func (d *lane) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due, next := d.due(time.Now())
		for _, p := range due {
			if _, err := d.to.device.Write(p); err != nil {
				d.refused() // as a full interface does, or one that is down
			}
		}
		if next > 0 {
			timer.Reset(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
	}
}

// due takes out what has arrived, and says when the next does; 0: nothing is under way.
func (d *lane) due(now time.Time) (packets [][]byte, next time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.queue) > 0 {
		if first := d.queue[0]; first.at.After(now) {
			return packets, first.at.Sub(now)
		}
		packets = append(packets, heap.Pop(&d.queue).(*arrival).packet) // nothing else is pushed
		d.stats.Passed++
	}
	return packets, 0
}

func (d *lane) refused() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Refused++
	d.stats.Passed--
}

type arrival struct {
	at     time.Time
	count  uint64
	packet []byte
}

// flight is what is under way, by arrival.
type flight []*arrival

func (f flight) Len() int { return len(f) }
func (f flight) Less(i, j int) bool {
	if f[i].at.Equal(f[j].at) {
		return f[i].count < f[j].count
	}
	return f[i].at.Before(f[j].at)
}
func (f flight) Swap(i, j int) { f[i], f[j] = f[j], f[i] }

// Push appends; container/heap calls it.
func (f *flight) Push(x any) { *f = append(*f, x.(*arrival)) }

// Pop removes the last; container/heap calls it.
func (f *flight) Pop() any {
	old := *f
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*f = old[:len(old)-1]
	return last
}
