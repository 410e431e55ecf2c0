package control

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// What is kept of the traffic, at most. A minute of one service and one answering cluster takes 9 KiB.
const (
	trafficMinutes   = 15      // that are kept
	maxMinutes       = 4_096   // in all; past it, the oldest of the program that has the most goes before its time
	maxTrafficSeries = 4_096   // pairs of service and answering cluster; past it, one of the program that has the most makes room
	maxAccounts      = 200_000 // counts that are compared with the next, of all programs together
	maxOwnAccounts   = 10_000  // of one program
	// maxRequestRate is what no sidecar carries, in requests a second: a program that says so counts for nothing.
	maxRequestRate = 200_000
)

// traffic is what the sidecars of the own cluster told of their calls, second by second. Safe for concurrent use.
//
// Programs tell sums since they started. What is kept is the growth of each: a program that tells nonsense spoils no more than its own share.
type traffic struct {
	now   func() time.Time
	knows func(topology.ClusterName) bool                        // whether there is such a cluster
	holds func(*configstream.Session, topology.ServiceName) bool // whether a program asked for a service

	mu       sync.Mutex
	began    time.Time                 // guarded by mu: of the first report
	programs map[string]*account       // guarded by mu: by receiver
	accounts int                       // guarded by mu: counts in them
	series   map[trafficKey]*sparkline // guarded by mu
	tellers  map[string]*telling       // guarded by mu: what of series is whose, by receiver
	minutes  int                       // guarded by mu: in series
	crowded  bool                      // guarded by mu: who tells now gets no more room, and has not to be asked about again
	swept    time.Time                 // guarded by mu
}

type trafficKey struct {
	service topology.ServiceName
	cluster topology.ClusterName // that answered; zero: none did
}

// account is what one program told last.
type account struct {
	session *configstream.Session
	at      time.Time
	sums    map[trafficKey]*sums
}

// sums are counts since a program's start.
type sums struct {
	requests, failed, retried, hedged uint64
	latency                           []uint64
}

// sparkline is the last minutes of one key. It is the program's that told of it first, until one tells of it that has less: so nobody is driven out by
// who tells of a lot, and what many tell of is of one of the small ones.
type sparkline struct {
	by      string
	minutes [trafficMinutes + 1]*minute // one is at its number modulo their count
}

// telling is how much is kept because of one program.
type telling struct{ series, minutes int }

type minute struct {
	number  int64 // Unix time in minutes
	seconds [60]second
}

type second struct {
	requests, failed, retried, hedged uint32
	latency                           [configstream.LatencyBuckets]uint32
}

func newTraffic(now func() time.Time, knows func(topology.ClusterName) bool) *traffic {
	return &traffic{now: now, knows: knows, holds: (*configstream.Session).Holds, programs: make(map[string]*account), series: make(map[trafficKey]*sparkline), tellers: make(map[string]*telling)}
}

// report takes in what a program told.
func (t *traffic) report(s *configstream.Session, r *configv1.Report) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.began.IsZero() {
		t.began = now
	}
	t.sweep(now)
	t.crowded = false
	p := t.programs[s.Receiver]
	first := p == nil // what it has counted so far was not in this second
	switch {
	case first:
		p = &account{session: s, at: now, sums: make(map[trafficKey]*sums)}
		t.programs[s.Receiver] = p
	case p.session.Since.After(s.Since):
		return // another of its streams, which is about to end
	}
	elapsed := now.Sub(p.at)
	before := p.sums
	if p.session != s { // it tells all of it anew: what it doesn't name, it has not counted, and is another process
		t.accounts -= len(p.sums)
		p.sums = make(map[trafficKey]*sums)
	}
	p.session, p.at = s, now
	for _, m := range r.GetTraffic() {
		key, told, ok := t.read(s, m)
		if !ok {
			continue
		}
		if p.sums[key] == nil {
			if t.accounts >= maxAccounts || len(p.sums) >= maxOwnAccounts {
				continue
			}
			t.accounts++
		}
		last := before[key]
		if last == nil {
			last = new(sums)
		}
		p.sums[key] = told
		if !first {
			t.add(s.Receiver, key, now, told.since(last), elapsed)
		}
	}
}

// read checks what a program tells of one service: it has to be one that the program asked for, answered by a cluster of this mesh, and make sense.
func (t *traffic) read(s *configstream.Session, m *configv1.Traffic) (trafficKey, *sums, bool) {
	service, err := topology.ParseServiceName(m.GetService())
	if err != nil || !t.holds(s, service) {
		return trafficKey{}, nil, false
	}
	key := trafficKey{service: service}
	if m.GetCluster() != "" {
		if key.cluster, err = topology.ParseClusterName(m.GetCluster()); err != nil || !t.knows(key.cluster) {
			return trafficKey{}, nil, false
		}
	}
	if m.GetFailed() > m.GetRequests() || len(m.GetLatency()) > configstream.LatencyBuckets {
		return trafficKey{}, nil, false
	}
	return key, &sums{m.GetRequests(), m.GetFailed(), m.GetRetried(), m.GetHedged(), slices.Clip(m.GetLatency())}, true
}

// since returns by how much the counts have grown; all of them, when the program has started again.
func (s *sums) since(last *sums) sums {
	if s.requests < last.requests || s.failed < last.failed || s.retried < last.retried || s.hedged < last.hedged {
		return *s
	}
	d := sums{s.requests - last.requests, s.failed - last.failed, s.retried - last.retried, s.hedged - last.hedged, make([]uint64, len(s.latency))}
	for i, n := range s.latency {
		d.latency[i] = n
		if i < len(last.latency) {
			if last.latency[i] > n {
				return *s
			}
			d.latency[i] -= last.latency[i]
		}
	}
	return d
}

// add keeps what a program counted since elapsed. mu is held.
func (t *traffic) add(by string, key trafficKey, now time.Time, d sums, elapsed time.Duration) {
	most := uint64(maxRequestRate * (elapsed.Seconds() + 1))
	if d.requests == 0 || d.requests > most || d.failed > d.requests {
		return
	}
	at := t.second(by, key, now)
	if at == nil {
		return
	}
	grow := func(n *uint32, by uint64) { *n = uint32(min(uint64(*n)+min(by, most), math.MaxUint32)) }
	grow(&at.requests, d.requests)
	grow(&at.failed, d.failed)
	grow(&at.retried, d.retried)
	grow(&at.hedged, d.hedged)
	for i, n := range d.latency {
		grow(&at.latency[i], min(n, d.requests))
	}
}

// second returns where what happens now is counted; nil where there is no room. mu is held.
func (t *traffic) second(by string, key trafficKey, now time.Time) *second {
	line := t.lineOf(by, key)
	if line == nil {
		return nil
	}
	unix := now.Unix()
	number := unix / 60
	slot := &line.minutes[number%int64(len(line.minutes))]
	if *slot == nil || (*slot).number != number {
		if *slot == nil {
			if t.minutes >= maxMinutes {
				if !t.dropOldest(by, number) {
					return nil
				}
				if t.series[key] != line { // it was its own
					return t.second(by, key, now)
				}
			}
			t.own(line.by, 0, 1)
		}
		*slot = &minute{number: number}
	}
	return &(*slot).seconds[unix%60]
}

// lineOf returns where what a program tells of a key is kept; nil where there is no room. mu is held.
func (t *traffic) lineOf(by string, key trafficKey) *sparkline {
	line := t.series[key]
	if line == nil {
		if len(t.series) >= maxTrafficSeries && !t.makeRoom(by) {
			return nil
		}
		line = &sparkline{by: by}
		t.series[key] = line
		t.own(by, 1, 0)
	}
	if line.by != by && t.has(by).series+1 < t.has(line.by).series {
		n := 0
		for _, m := range line.minutes {
			if m != nil {
				n++
			}
		}
		t.own(line.by, -1, -n)
		t.own(by, 1, n)
		line.by = by
	}
	return line
}

func (t *traffic) has(by string) telling {
	if o := t.tellers[by]; o != nil {
		return *o
	}
	return telling{}
}

// own notes that so much more is kept because of a program. mu is held.
func (t *traffic) own(by string, series, minutes int) {
	o := t.tellers[by]
	if o == nil {
		o = new(telling)
		t.tellers[by] = o
	}
	o.series += series
	o.minutes += minutes
	t.minutes += minutes
	if *o == (telling{}) {
		delete(t.tellers, by)
	}
}

// makeRoom gives up the series of the program that has the most of them that was silent for the longest, and reports whether that is another program than
// the one that wants room, with more than it. mu is held.
func (t *traffic) makeRoom(by string) bool {
	if t.crowded {
		return false
	}
	most := by
	for o, has := range t.tellers {
		if has.series > t.has(most).series+1 { // not for one that will have as many
			most = o
		}
	}
	if most == by {
		t.crowded = true
		return false
	}
	var victim trafficKey
	last := int64(math.MaxInt64)
	for key, line := range t.series {
		if line.by != most {
			continue
		}
		latest := int64(0)
		for _, m := range line.minutes {
			if m != nil {
				latest = max(latest, m.number)
			}
		}
		if latest < last {
			victim, last = key, latest
		}
	}
	t.cut(victim, math.MaxInt64)
	return true
}

// dropOldest makes room for a minute: the oldest minutes of the program that has the most go. It reports whether there were any older than the present
// one; who has the most gets no more. mu is held.
func (t *traffic) dropOldest(by string, present int64) bool {
	if t.crowded {
		return false
	}
	most := by
	for o, has := range t.tellers {
		if has.minutes > t.has(most).minutes {
			most = o
		}
	}
	oldest := present
	for _, line := range t.series {
		for _, m := range line.minutes {
			if m != nil && line.by == most {
				oldest = min(oldest, m.number)
			}
		}
	}
	if oldest == present && most == by {
		t.crowded = true
		return false
	}
	before := t.minutes
	for key, line := range t.series {
		if line.by == most {
			t.cut(key, oldest)
		}
		if oldest == present && t.minutes < before { // all that it has is of now: one will do
			break
		}
	}
	return t.minutes < before
}

// drop forgets minutes up to one. mu is held.
func (t *traffic) drop(upTo int64) {
	for key := range t.series {
		t.cut(key, upTo)
	}
}

// cut forgets a series' minutes up to one, and the series when none is left. mu is held.
func (t *traffic) cut(key trafficKey, upTo int64) {
	line := t.series[key]
	left, gone := 0, 0
	for i, m := range line.minutes {
		switch {
		case m == nil:
		case m.number <= upTo:
			line.minutes[i] = nil
			gone++
		default:
			left++
		}
	}
	t.own(line.by, 0, -gone)
	if left == 0 {
		delete(t.series, key)
		t.own(line.by, -1, 0)
	}
}

// sweep forgets what is too old, once a minute. mu is held.
func (t *traffic) sweep(now time.Time) {
	if now.Sub(t.swept).Abs() < time.Minute {
		return
	}
	t.swept = now
	t.drop(now.Unix()/60 - trafficMinutes - 1)
	for receiver, p := range t.programs {
		if now.Sub(p.at) > trafficMinutes*time.Minute {
			t.accounts -= len(p.sums)
			delete(t.programs, receiver)
		}
	}
}

// of returns what is known of a service since then.
func (t *traffic) of(self topology.ClusterName, service topology.ServiceName, since time.Time) admin.Traffic {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	out := admin.Traffic{Service: service.String(), Cluster: self.String(), Now: now, Since: since, Series: []admin.TrafficSeries{}}
	if t.began.After(since) {
		out.Since = t.began
	}
	for i := range configstream.LatencyBuckets {
		out.LatencyEnds = append(out.LatencyEnds, configstream.LatencyEnd(i))
	}
	for _, p := range t.programs {
		for key := range p.sums {
			if key.service == service {
				out.Callers++
				break
			}
		}
	}
	for key, line := range t.series {
		if key.service == service {
			s := admin.TrafficSeries{Cluster: key.cluster.String(), Seconds: line.since(since)}
			if len(s.Seconds) > 0 {
				out.Series = append(out.Series, s)
			}
		}
	}
	slices.SortFunc(out.Series, func(a, b admin.TrafficSeries) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return out
}

// since returns the seconds from then on in which there was something, oldest first.
func (l *sparkline) since(since time.Time) []admin.TrafficSecond {
	var out []admin.TrafficSecond
	for _, m := range l.minutes {
		if m == nil {
			continue
		}
		for i := range m.seconds {
			s, at := &m.seconds[i], time.Unix(m.number*60+int64(i), 0).UTC()
			if s.requests == 0 || at.Before(since.Truncate(time.Second)) {
				continue
			}
			told := admin.TrafficSecond{At: at, Requests: uint64(s.requests), Failed: uint64(s.failed), Retried: uint64(s.retried), Hedged: uint64(s.hedged)}
			for i, n := range s.latency {
				if n > 0 {
					told.Latency = append(append(told.Latency, make([]uint64, i-len(told.Latency))...), uint64(n))
				}
			}
			out = append(out, told)
		}
	}
	slices.SortFunc(out, func(a, b admin.TrafficSecond) int { return a.At.Compare(b.At) })
	return out
}
