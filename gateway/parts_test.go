package gateway

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestSpread(t *testing.T) {
	gateways := func(n int, draining ...int) []topology.Gateway {
		var out []topology.Gateway
		for i := range n {
			out = append(out, topology.Gateway{ID: fmt.Sprintf("gateway-%d", i)})
		}
		for _, i := range draining {
			out[i].Draining = true
		}
		return out
	}
	for name, tc := range map[string]struct {
		gateways        []topology.Gateway
		want            int
		slots, distinct int
	}{
		"none":                   {nil, 4, 0, 0},
		"one":                    {gateways(1), 4, 4, 1},
		"two":                    {gateways(2), 4, 4, 2},
		"three":                  {gateways(3), 4, 4, 3},
		"more than connections":  {gateways(6), 4, 6, 6},
		"far too many":           {gateways(100), 4, maxPeerGateways, maxPeerGateways},
		"one of two drains":      {gateways(2, 0), 4, 4, 1},
		"all drain":              {gateways(2, 0, 1), 4, 4, 2},
		"a single connection":    {gateways(2), 1, 2, 2},
		"a single one, one away": {gateways(2, 1), 1, 1, 1},
	} {
		slots := spread(tc.gateways, tc.want, "seed")
		by := make(map[string]int)
		for _, s := range slots {
			by[s.gateway.ID]++
		}
		if len(slots) != tc.slots || len(by) != tc.distinct {
			t.Errorf("%s: %d slots to %d gateways, want %d to %d", name, len(slots), len(by), tc.slots, tc.distinct)
		}
		for id, n := range by {
			if n < len(slots)/len(by) || n > (len(slots)+len(by)-1)/len(by) {
				t.Errorf("%s: %s has %d of %d slots", name, id, n, len(slots))
			}
		}
	}
	if a, b := spread(gateways(3), 4, "a"), spread(gateways(3), 4, "a"); !cmp.Equal(a, b, cmp.AllowUnexported(slot{}), cmp.Comparer(func(a, b topology.Gateway) bool { return a == b })) {
		t.Error("the same input gave different slots")
	}
}

func TestPulse(t *testing.T) {
	const interval, deadAfter = 100 * time.Millisecond, 500 * time.Millisecond
	start := time.Unix(0, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }

	// one that has been heard for a while
	heard := func(interval, deadAfter time.Duration, now time.Time) *pulse {
		p := newPulse(interval, deadAfter, now)
		for range fewSilences {
			p.past.add(interval)
		}
		return p
	}

	t.Run("dies of silence", func(t *testing.T) {
		p := heard(interval, deadAfter, start)
		for d := interval; d < deadAfter; d += interval {
			p.tick(at(d), false)
			if p.dead(at(d)) {
				t.Fatalf("dead after %s", d)
			}
		}
		if !p.suspect(at(deadAfter)) {
			t.Error("not even suspect")
		}
		p.tick(at(deadAfter+interval), false)
		if !p.dead(at(deadAfter + interval)) {
			t.Error("still alive")
		}
	})
	t.Run("our own delay isn't its silence", func(t *testing.T) {
		p := heard(interval, deadAfter, start)
		p.tick(at(interval), false)
		p.tick(at(10*time.Second), false) // this process was stopped
		if p.dead(at(10 * time.Second)) {
			t.Error("blamed for what we slept through")
		}
		for d := 10*time.Second + interval; d <= 10*time.Second+deadAfter; d += interval {
			p.tick(at(d), false)
		}
		if !p.dead(at(10*time.Second + deadAfter)) {
			t.Error("the delay excuses what came after it")
		}
	})
	t.Run("an idle link is asked less often, and then as any other", func(t *testing.T) {
		p := heard(interval, deadAfter, start)
		asked := 0
		for n := range 50 {
			if seq := p.tick(at(time.Duration(n)*interval), true); seq > 0 {
				asked++
				p.reply(seq, at(time.Duration(n)*interval))
				p.hear(at(time.Duration(n) * interval))
			}
			if p.suspect(at(time.Duration(n)*interval)) || p.dead(at(time.Duration(n)*interval)) {
				t.Fatal("suspect though nothing was asked of it")
			}
		}
		if asked != 50/idleEvery {
			t.Errorf("asked %d times in 50 intervals", asked)
		}
		begun := 5 * time.Second // it falls silent
		for d := begun; d <= begun+deadAfter+interval; d += interval {
			p.tick(at(d), false)
		}
		if !p.dead(at(begun + deadAfter + interval)) {
			t.Error("still alive")
		}
	})
	t.Run("a word ends all suspicion", func(t *testing.T) {
		p := heard(interval, deadAfter, start)
		p.tick(at(400*time.Millisecond), false)
		p.hear(at(400 * time.Millisecond))
		if p.suspect(at(450*time.Millisecond)) || p.dead(at(800*time.Millisecond)) {
			t.Error("suspect right after it spoke")
		}
	})
	t.Run("measures the round trip", func(t *testing.T) {
		p := heard(interval, deadAfter, start)
		for i := range 50 {
			sent := time.Duration(i) * interval
			seq := p.tick(at(sent), false)
			p.reply(seq, at(sent+80*time.Millisecond))
			p.reply(seq, at(sent+5*time.Second)) // twice
			p.reply(seq+7, at(sent))             // never asked
		}
		if rtt := p.rtt(); rtt != 80*time.Millisecond {
			t.Errorf("rtt %s, want 80ms", rtt)
		}
		if got := p.patience(); got < 80*time.Millisecond || got > 100*time.Millisecond {
			t.Errorf("patience %s", got)
		}
	})
	t.Run("a long link is given more time", func(t *testing.T) {
		p := heard(interval, deadAfter, start)
		seq := p.tick(start, false)
		p.reply(seq, at(400*time.Millisecond))
		p.hear(at(400 * time.Millisecond))
		p.tick(at(400*time.Millisecond), false)
		if p.dead(at(1300 * time.Millisecond)) {
			t.Error("dead after 900 ms on a link of 400")
		}
	})
}

func TestEndpointsAreEjectedAndNeverAll(t *testing.T) {
	service := serviceName("checkout.shop")
	now := time.Unix(1000, 0)
	var candidates []*topology.Endpoint
	for i := range 4 {
		candidates = append(candidates, &topology.Endpoint{ID: fmt.Sprint(i), Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1), Capacity: 1})
	}
	s := newEndpoints()
	drawn := func(at time.Time) map[string]int {
		by := make(map[string]int)
		for range 400 {
			e := s.take(service, candidates, at)
			by[e.ID]++
			s.release(keyOf(service, e))
		}
		return by
	}
	fail := func(i int) bool { return s.unreachable(keyOf(service, candidates[i]), candidates, now) }
	if fail(0) || !fail(0) {
		t.Error("want it left out at the second failure in a row")
	}
	if by := drawn(now); by["0"] != 0 || len(by) != 3 {
		t.Errorf("drawn %v", by)
	}
	if fail(1) || !fail(1) || fail(2) || fail(2) {
		t.Error("want half of the endpoints left out, and no more")
	}
	if by := drawn(now); len(by) != 2 {
		t.Errorf("drawn %v", by)
	}
	if by := drawn(now.Add(ejectionBase)); len(by) != 4 {
		t.Errorf("after a while: drawn %v", by)
	}
	s.reached(keyOf(service, candidates[0]))
	if fail(0) {
		t.Error("left out at the first failure after a success")
	}
	only := candidates[3:]
	for range 10 {
		if s.unreachable(keyOf(service, only[0]), only, now) {
			t.Error("the last endpoint was left out")
		}
	}
	if s.take(service, nil, now) != nil {
		t.Error("took one of none")
	}
	s.forget(topology.NewSnapshot(topology.SnapshotSpec{}))
	if len(s.states) != 0 {
		t.Errorf("%d states are kept of endpoints that don't exist", len(s.states))
	}
}

func TestEndpointsByLoad(t *testing.T) {
	service := serviceName("checkout.shop")
	small := &topology.Endpoint{ID: "small", Address: netip.MustParseAddrPort("10.0.0.1:1"), Capacity: 1}
	big := &topology.Endpoint{ID: "big", Address: netip.MustParseAddrPort("10.0.0.2:1"), Capacity: 3}
	s := newEndpoints()
	by := make(map[string]int)
	for range 400 {
		by[s.take(service, []*topology.Endpoint{small, big}, time.Unix(0, 0)).ID]++
	}
	if by["small"] < 90 || by["small"] > 110 {
		t.Errorf("400 streams went %v to one copy and three", by)
	}
}

func TestCapacityMessages(t *testing.T) {
	a, b, c := serviceName("a.shop"), serviceName("b.shop"), serviceName("c.shop")
	counts := func(ms []*streamv1.LinkMessage) []*streamv1.Capacity {
		var out []*streamv1.Capacity
		for _, m := range ms {
			out = append(out, m.GetCapacity())
		}
		return out
	}
	sc := func(s topology.ServiceName, n uint32) *streamv1.ServiceCapacity {
		return &streamv1.ServiceCapacity{Namespace: s.Namespace(), Service: s.Name(), Ready: n}
	}
	for name, tc := range map[string]struct {
		told, now map[topology.ServiceName]uint32
		want      []*streamv1.Capacity
	}{
		"first":   {nil, map[topology.ServiceName]uint32{b: 0, a: 2}, []*streamv1.Capacity{{Complete: true, Services: []*streamv1.ServiceCapacity{sc(a, 2), sc(b, 0)}}}},
		"nothing": {nil, nil, []*streamv1.Capacity{{Complete: true}}},
		"same":    {map[topology.ServiceName]uint32{a: 2}, map[topology.ServiceName]uint32{a: 2}, nil},
		"change": {
			map[topology.ServiceName]uint32{a: 2, b: 1},
			map[topology.ServiceName]uint32{a: 3, c: 0},
			[]*streamv1.Capacity{{Services: []*streamv1.ServiceCapacity{sc(a, 3), sc(b, 0), sc(c, 0)}}},
		},
	} {
		if diff := cmp.Diff(tc.want, counts(capacityMessages(tc.told, tc.now)), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}

	many := make(map[topology.ServiceName]uint32)
	for i := range 1000 {
		many[serviceName(fmt.Sprintf("s%d.%s", i, bytes.Repeat([]byte("n"), 63)))] = uint32(i % 2)
	}
	var e emptiness
	complete := 0
	for _, m := range capacityMessages(nil, many) {
		frame, err := encodeControl(m)
		if err != nil {
			t.Fatal(err)
		}
		read, err := readControl(bytes.NewReader(frame), make([]byte, maxControl))
		if err != nil {
			t.Fatal(err)
		}
		if read.GetCapacity().GetComplete() {
			complete++
		}
		if err := e.apply(read.GetCapacity()); err != nil {
			t.Fatal(err)
		}
	}
	for s, n := range many {
		if e.has(s) != (n == 0) {
			t.Errorf("%s with %d copies: empty %t", s, n, e.has(s))
		}
	}
	if complete != 1 {
		t.Errorf("%d complete messages, want the first", complete)
	}
	if err := e.apply(&streamv1.Capacity{Services: []*streamv1.ServiceCapacity{{Namespace: "UPPER", Service: "x"}}}); err == nil {
		t.Error("a name that is none was taken")
	}
}

func TestHedgeBudget(t *testing.T) {
	b := budget{tokens: hedgeBurst}
	for range hedgeBurst {
		if !b.spend() {
			t.Fatal("the burst is spent early")
		}
	}
	spent := 0
	for range 1000 {
		b.earn()
		if b.spend() {
			spent++
		}
	}
	if spent < 90 || spent > 110 {
		t.Errorf("%d hedges for 1000 streams", spent)
	}
}

func FuzzReadControl(f *testing.F) {
	for _, m := range []*streamv1.LinkMessage{probe(1), probeReply(1 << 60), drainingMessage(), capacityMessage(&streamv1.Capacity{
		Complete: true, Services: []*streamv1.ServiceCapacity{{Namespace: "shop", Service: "checkout", Ready: 3}},
	})} {
		frame, err := encodeControl(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
	}
	f.Add([]byte("\x00\x00"))
	f.Add([]byte("\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		buf := make([]byte, maxControl)
		var e emptiness
		for {
			m, err := readControl(r, buf)
			if err != nil {
				return
			}
			frame, err := encodeControl(m)
			if err != nil {
				t.Fatal(err)
			}
			again, err := readControl(bytes.NewReader(frame), make([]byte, maxControl))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(m, again, protocmp.Transform()); diff != "" {
				t.Errorf("read something else the second time:\n%s", diff)
			}
			if c := m.GetCapacity(); c != nil && e.apply(c) == nil {
				for _, s := range c.GetServices() {
					name, err := topology.NewServiceName(s.GetNamespace(), s.GetService())
					if err != nil || s.GetReady() > 0 && len(c.GetServices()) == 1 && e.has(name) {
						t.Errorf("%v: %v", s, err)
					}
				}
			}
		}
	})
}
