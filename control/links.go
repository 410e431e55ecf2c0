package control

import (
	"maps"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// How calm the word on a link is kept: every change of it goes to every proxy.
const (
	linkUpAfter = time.Second            // a link that comes back must stay for this long; one that breaks counts at once
	rttStep     = time.Millisecond       // the least change of a round trip that is passed on,
	rttShare    = 4                      // and the least share of it: a quarter
	rttRounding = 100 * time.Microsecond // of short round trips; long ones are rounded to a millisecond
)

// linkWord is what proxies are told of the links to a cluster.
type linkWord struct {
	state topology.LinkState
	rtt   time.Duration // rounded; 0 is unknown
}

// linkReport is what one gateway said last of its links to a cluster.
type linkReport struct {
	gateway     string
	cluster     topology.ClusterName
	state       topology.LinkState
	connections int
	rtt         time.Duration
	detail      string
	transport   string
	why         string
	carriers    []admin.Carrier
	at          time.Time
	connected   bool // the gateway's config stream is open: its word is of now
}

// readReport turns a gateway's report into the words that we know. What makes no sense is left out.
func readReport(gateway string, r *configv1.Report, now time.Time) []linkReport {
	const maxRTT = time.Minute
	var out []linkReport
	for _, l := range r.GetLinks() {
		cluster, err := topology.ParseClusterName(l.GetCluster())
		if err != nil {
			continue
		}
		state := topology.LinkState(l.GetState())
		if state != topology.LinkUp && state != topology.LinkSuspect && state != topology.LinkDown {
			continue
		}
		rtt := time.Duration(min(l.GetRttMicros(), uint64(maxRTT/time.Microsecond))) * time.Microsecond
		out = append(out, linkReport{
			gateway: gateway, cluster: cluster, state: state, connections: int(l.GetConnections()),
			rtt: rtt, detail: clip(l.GetDetail(), 256), transport: clip(l.GetTransport(), 16), why: clip(l.GetWhy(), 256),
			carriers: readCarriers(l.GetCarriers()), at: now,
		})
	}
	return out
}

// linkTracker turns what gateways report into calm words. Owned by the loop.
type linkTracker struct {
	words map[topology.ClusterName]linkWord
	since map[topology.ClusterName]time.Time // a link that is down here and was reported up since then
}

func newLinkTracker() *linkTracker {
	return &linkTracker{words: make(map[topology.ClusterName]linkWord), since: make(map[topology.ClusterName]time.Time)}
}

// update takes in all reports of now. again is how long until the words change by time alone; 0: they don't.
func (t *linkTracker) update(reports []linkReport, now time.Time) (again time.Duration) {
	byCluster := make(map[topology.ClusterName][]linkReport)
	for _, r := range reports {
		byCluster[r.cluster] = append(byCluster[r.cluster], r)
	}
	maps.DeleteFunc(t.words, func(c topology.ClusterName, _ linkWord) bool { return byCluster[c] == nil })
	maps.DeleteFunc(t.since, func(c topology.ClusterName, _ time.Time) bool { return byCluster[c] == nil })
	for cluster, rs := range byCluster {
		state, rtt := sumUp(rs)
		word := t.words[cluster]
		if state == topology.LinkUnknown {
			continue // no gateway speaks: silence of the control link is no word on the data path
		}
		if word.state == topology.LinkDown && state != topology.LinkDown {
			since, pending := t.since[cluster]
			if !pending {
				since = now
				t.since[cluster] = now
			}
			if left := linkUpAfter - now.Sub(since); left > 0 {
				if again == 0 || left < again {
					again = left
				}
				continue
			}
		}
		delete(t.since, cluster)
		word.state = state
		word.rtt = calmRTT(word.rtt, rtt)
		t.words[cluster] = word
	}
	return again
}

// snapshot returns the words of now.
func (t *linkTracker) snapshot() map[topology.ClusterName]linkWord { return maps.Clone(t.words) }

// sumUp: a cluster is reached when one gateway reaches it. Gateways that can't be heard now don't count.
func sumUp(reports []linkReport) (topology.LinkState, time.Duration) {
	state, rtt := topology.LinkUnknown, time.Duration(0)
	for _, r := range reports {
		if !r.connected {
			continue
		}
		if better(r.state) > better(state) {
			state = r.state
		}
		if r.state != topology.LinkDown && r.rtt > 0 && (rtt == 0 || r.rtt < rtt) {
			rtt = r.rtt
		}
	}
	return state, rtt
}

// better orders the states.
func better(s topology.LinkState) int {
	return slices.Index([]topology.LinkState{topology.LinkUnknown, topology.LinkDown, topology.LinkSuspect, topology.LinkUp}, s)
}

// maxCarriers bounds the connections of one link that are shown.
const maxCarriers = 128

// readCarriers turns a gateway's words on its connections into those of the admin API.
func readCarriers(in []*configv1.CarrierReport) []admin.Carrier {
	const most = 1 << 40 // microseconds and milliseconds that a Duration has room for
	out := make([]admin.Carrier, 0, min(len(in), maxCarriers))
	for _, c := range in[:min(len(in), maxCarriers)] {
		out = append(out, admin.Carrier{
			Gateway: clip(c.GetGateway(), 64), Transport: clip(c.GetTransport(), 16), State: clip(c.GetState(), 16),
			RTT:    time.Duration(min(c.GetRttMicros(), most)) * time.Microsecond,
			Jitter: time.Duration(min(c.GetJitterMicros(), most)) * time.Microsecond,
			Age:    time.Duration(min(c.GetAgeMillis(), most)) * time.Millisecond,
			Loss:   min(max(c.GetLoss(), 0), 1), Streams: int(c.GetStreams()), Sent: c.GetSent(), Received: c.GetReceived(),
			Remote: clip(c.GetRemote(), 128),
		})
	}
	return out
}

// calmRTT returns last unless next differs enough to matter.
func calmRTT(last, next time.Duration) time.Duration {
	if next == 0 {
		return last
	}
	if last != 0 && (next-last).Abs() <= max(rttStep, last/rttShare) {
		return last
	}
	if next < 10*time.Millisecond {
		return max(next.Round(rttRounding), rttRounding)
	}
	return next.Round(time.Millisecond)
}

// sortReports puts reports into the order in which they are shown.
func sortReports(r []linkReport) {
	slices.SortFunc(r, func(a, b linkReport) int {
		if a.gateway != b.gateway {
			if a.gateway < b.gateway {
				return -1
			}
			return 1
		}
		return a.cluster.Compare(b.cluster)
	})
}

// clip bounds foreign text that is only shown.
func clip(s string, limit int) string {
	if len(s) > limit {
		return s[:limit]
	}
	return s
}
