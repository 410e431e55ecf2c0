package wan

import (
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// device is a site's end: what it reads are packets put in, what is written are packets with when they came.
type device struct {
	out chan []byte
	in  chan stamped
}

type stamped struct {
	packet []byte
	at     time.Time
}

func newDevice() *device { return &device{make(chan []byte, 1<<14), make(chan stamped, 1<<15)} }

func (d *device) Read(b []byte) (int, error) {
	p, ok := <-d.out
	if !ok {
		return 0, io.EOF
	}
	return copy(b, p), nil
}

func (d *device) Write(b []byte) (int, error) {
	d.in <- stamped{slices.Clone(b), time.Now()}
	return len(b), nil
}

// lab is two sites with a router between them, in a bubble of virtual time.
type lab struct {
	*Router
	a, b *device
}

func inBubble(t *testing.T, f func(t *testing.T, l lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := lab{a: newDevice(), b: newDevice()}
		var err error
		l.Router, err = New(1, Site{"a", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}, l.a},
			Site{"b", []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00:2::/32")}, l.b})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		f(t, l)
		cancel()
		close(l.a.out)
		close(l.b.out)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (l lab) link(t *testing.T, from, to, words string) {
	t.Helper()
	parsed, err := ParseLink(words)
	if err == nil {
		err = l.Set(from, to, parsed)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// came returns what has come to b by now.
func came(d *device) (out []stamped) {
	for {
		select {
		case s := <-d.in:
			out = append(out, s)
		default:
			return out
		}
	}
}

// ipv4 is a packet with a number in it.
func ipv4(from, to string, number uint32, size int) []byte {
	p := make([]byte, max(size, ipv4Header+4))
	p[0], p[8] = 0x45, 64
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], netip.MustParseAddr(from).AsSlice())
	copy(p[16:], netip.MustParseAddr(to).AsSlice())
	binary.BigEndian.PutUint16(p[10:], checksum(p[:ipv4Header]))
	binary.BigEndian.PutUint32(p[ipv4Header:], number)
	return p
}

func number(p []byte) uint32 { return binary.BigEndian.Uint32(p[ipv4Header:]) }

// checksum is that of an IPv4 header (RFC 1071); 0 over a header that has the right one.
func checksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestDelayIsExact(t *testing.T) {
	inBubble(t, func(t *testing.T, l lab) {
		t.Helper()
		l.link(t, "a", "b", "80ms")
		start := time.Now()
		l.a.out <- ipv4("10.1.0.1", "10.2.0.1", 1, 100)
		l.b.out <- ipv4("10.2.0.1", "10.1.0.1", 2, 100)
		time.Sleep(time.Second)
		there, back := came(l.b), came(l.a)
		if len(there) != 1 || there[0].at.Sub(start) != 80*time.Millisecond {
			t.Errorf("a to b: %v", there)
		}
		if len(back) != 1 || back[0].at.Sub(start) != 0 {
			t.Errorf("b to a, of which nothing was said: %v", back)
		}
		if p := there[0].packet; p[8] != 63 || checksum(p[:ipv4Header]) != 0 {
			t.Errorf("TTL %d, checksum off by %#x: want one hop less, and right", p[8], checksum(p[:ipv4Header]))
		}
	})
}

func TestNowhereAndOld(t *testing.T) {
	inBubble(t, func(t *testing.T, l lab) {
		t.Helper()
		old := ipv4("10.1.0.1", "10.2.0.1", 1, 0)
		old[8] = 1
		six := make([]byte, 60)
		six[0], six[7] = 0x60, 9
		copy(six[24:], netip.MustParseAddr("fd00:2::1").AsSlice())
		for _, p := range [][]byte{old, ipv4("10.1.0.1", "10.3.0.1", 1, 0), ipv4("10.1.0.1", "10.1.0.2", 1, 0), nil, {0x45}, {0xff, 1, 2}, six} {
			l.a.out <- p
		}
		time.Sleep(time.Second)
		got := came(l.b)
		if len(got) != 1 || got[0].packet[7] != 8 {
			t.Errorf("%d packets: want the IPv6 one, one hop older", len(got))
		}
		if len(came(l.a)) > 0 {
			t.Error("a packet came back")
		}
	})
}

// TestOrder: jitter alone keeps the order; reordering does not.
func TestOrder(t *testing.T) {
	for words, kept := range map[string]bool{"50ms~40ms": true, "50ms~40ms,reorder=5%": false} {
		inBubble(t, func(t *testing.T, l lab) {
			t.Helper()
			l.link(t, "a", "b", words)
			const packets = 2000
			for n := range uint32(packets) {
				l.a.out <- ipv4("10.1.0.1", "10.2.0.1", n, 0)
				time.Sleep(time.Millisecond)
			}
			time.Sleep(time.Second)
			got := came(l.b)
			ordered := slices.IsSortedFunc(got, func(a, b stamped) int { return int(number(a.packet)) - int(number(b.packet)) })
			if len(got) != packets || ordered != kept {
				t.Errorf("%s: %d of %d packets, in order: %t", words, len(got), packets, ordered)
			}
			if s := l.Stats("a", "b"); (s.Reordered > 0) == kept || s.Passed != packets {
				t.Errorf("%s: %+v", words, s)
			}
		})
	}
}

// TestChances: what is lost and doubled is as much as was said, and the ledger of packets adds up.
func TestChances(t *testing.T) {
	inBubble(t, func(t *testing.T, l lab) {
		t.Helper()
		l.link(t, "a", "b", "1ms,3%,dup=10%")
		const packets = 10_000
		for n := range uint32(packets) {
			l.a.out <- ipv4("10.1.0.1", "10.2.0.1", n, 0)
		}
		time.Sleep(time.Second)
		s := l.Stats("a", "b")
		if s.Lost < 200 || s.Lost > 400 || s.Duplicated < 800 || s.Duplicated > 1200 {
			t.Errorf("of %d: %+v, want some 300 lost and 970 doubled", packets, s)
		}
		if got := len(came(l.b)); uint64(got) != packets-s.Lost+s.Duplicated {
			t.Errorf("%d came of %d, with %+v", got, packets, s)
		}
	})
}

// TestRate: what goes through in a second is the rate, and what comes on top waits in the queue, or is lost.
func TestRate(t *testing.T) {
	inBubble(t, func(t *testing.T, l lab) {
		t.Helper()
		l.link(t, "a", "b", "8mbit,queue=50k")
		for n := range uint32(200) { // 200,000 bytes at once: 51,200 may wait
			l.a.out <- ipv4("10.1.0.1", "10.2.0.1", n, 1000)
		}
		time.Sleep(25*time.Millisecond + time.Millisecond/2)
		if got := len(came(l.b)); got != 25 {
			t.Errorf("%d packets of 1,000 bytes in 25 ms at 8 Mbit/s: want 25", got)
		}
		time.Sleep(time.Second)
		if s := l.Stats("a", "b"); s.Overflowed != 200-s.Passed || s.Passed < 50 || s.Passed > 54 {
			t.Errorf("%+v: want some 52 passed, the rest overflowed", s)
		}
	})
}

// TestPartition: one direction alone, live, with what was under way.
func TestPartition(t *testing.T) {
	inBubble(t, func(t *testing.T, l lab) {
		t.Helper()
		l.link(t, "a", "b", "100ms")
		l.a.out <- ipv4("10.1.0.1", "10.2.0.1", 1, 0)
		time.Sleep(50 * time.Millisecond)
		l.link(t, "a", "b", "down")
		l.a.out <- ipv4("10.1.0.1", "10.2.0.1", 2, 0)
		l.b.out <- ipv4("10.2.0.1", "10.1.0.1", 3, 0)
		time.Sleep(time.Second)
		l.link(t, "a", "b", "100ms")
		l.a.out <- ipv4("10.1.0.1", "10.2.0.1", 4, 0)
		time.Sleep(time.Second)
		got := came(l.b)
		if len(got) != 1 || number(got[0].packet) != 4 || len(came(l.a)) != 1 {
			t.Errorf("%d packets came through a link that was down", len(got))
		}
		if s := l.Stats("a", "b"); s.Cut != 2 || s.Passed != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestNoUDP: of two packets, the one of UDP is cut off.
func TestNoUDP(t *testing.T) {
	inBubble(t, func(t *testing.T, l lab) {
		t.Helper()
		l.link(t, "a", "b", "noudp")
		for number, protocol := range []byte{6, 17} {
			p := ipv4("10.1.0.1", "10.2.0.1", uint32(number), 0)
			p[9] = protocol
			l.a.out <- p
		}
		time.Sleep(time.Second)
		if got := came(l.b); len(got) != 1 || number(got[0].packet) != 0 {
			t.Errorf("%d packets came", len(got))
		}
		if s := l.Stats("a", "b"); s.Cut != 1 || s.Passed != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestRefuses(t *testing.T) {
	p := netip.MustParsePrefix
	for name, sites := range map[string][]Site{
		"one name":      {{Name: "a"}, {Name: "a"}},
		"one's address": {{Name: "a", Prefixes: []netip.Prefix{p("10.0.0.0/8")}}, {Name: "b", Prefixes: []netip.Prefix{p("10.1.0.0/16")}}},
	} {
		if _, err := New(1, sites...); err == nil {
			t.Errorf("%s was taken twice", name)
		}
	}
	r, err := New(1, Site{Name: "a"}, Site{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]string{{"a", "a"}, {"a", "c"}, {"", "b"}} {
		if r.Set(pair[0], pair[1], Link{}) == nil {
			t.Errorf("%v is a link", pair)
		}
	}
}

func TestParseLink(t *testing.T) {
	for words, want := range map[string]Link{
		"80ms":           {Delay: 80 * time.Millisecond},
		"80ms~5ms, 1%":   {Delay: 80 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.01},
		"20mbit,0.1%":    {Rate: 20_000_000, Loss: 0.001},
		"queue=64k,down": {Queue: 64 << 10, Down: true},
		"noudp":          {NoUDP: true},
		"dup=100%,0s":    {Duplicate: 1},
		"reorder=2%":     {Reorder: 0.02},
		"perfect":        {},
		"1gbit,queue=7":  {Rate: 1e9, Queue: 7},
		"1s~1s,500kbit":  {Delay: time.Second, Jitter: time.Second, Rate: 500_000},
	} {
		got, err := ParseLink(words)
		if got != want || err != nil {
			t.Errorf("%q is %+v, %v", words, got, err)
		}
		if back, err := ParseLink(got.String()); back != want || err != nil {
			t.Errorf("%q came back as %+v, %v", got, back, err)
		}
	}
	for _, words := range []string{
		"", "80", "-80ms", "1h", "80ms,90ms", "1%,2%", "101%", "-1%", "NaN%", "dup=1", "20mbits", "0mbit", "9999999999gbit", "queue=", "queue=k", "up", "80ms~", "rate=1mbit", "1%,",
	} {
		if got, err := ParseLink(words); err == nil {
			t.Errorf("%q is %+v", words, got)
		}
	}
}

// TestAgeKeepsChecksum: for any header, of any TTL.
func TestAgeKeepsChecksum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := ipv4("10.1.0.1", "10.2.0.1", 0, 0)
		copy(p[1:8], rapid.SliceOfN(rapid.Byte(), 7, 7).Draw(t, "fields"))
		p[8] = rapid.ByteMin(2).Draw(t, "ttl")
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(p[:ipv4Header]))
		if !age(p) || checksum(p[:ipv4Header]) != 0 {
			t.Fatalf("% x: checksum off by %#x", p[:ipv4Header], checksum(p[:ipv4Header]))
		}
	})
}

func FuzzParseLink(f *testing.F) {
	f.Add("80ms~5ms,1%,dup=1%,reorder=2%,20mbit,queue=64k,down")
	f.Fuzz(func(t *testing.T, words string) {
		l, err := ParseLink(words)
		if err == nil && (l.Delay < 0 || l.Jitter < 0 || l.Rate < 0 || l.queue() <= 0 || !(l.Loss >= 0 && l.Loss <= 1)) {
			t.Fatalf("%q is %+v", words, l)
		}
		if err == nil {
			if _, err := ParseLink(l.String()); err != nil {
				t.Fatalf("%q is written %q, and that is none: %v", words, l, err)
			}
		}
	})
}
