package control

import (
	"testing"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestLinks(t *testing.T) {
	us, err := topology.ParseClusterName("us")
	if err != nil {
		t.Fatal(err)
	}
	const ms = time.Millisecond
	report := func(gateway string, state topology.LinkState, rtt time.Duration, connected bool) linkReport {
		return linkReport{gateway: gateway, cluster: us, state: state, rtt: rtt, connected: connected}
	}
	type step struct {
		after   time.Duration
		reports []linkReport
		want    linkWord
		again   time.Duration
	}
	for name, steps := range map[string][]step{
		"first word counts at once": {
			{0, nil, linkWord{}, 0},
			{0, []linkReport{report("a", "up", 80*ms, true)}, linkWord{"up", 80 * ms}, 0},
		},
		"one gateway that gets through is enough": {
			{0, []linkReport{report("a", "down", 0, true), report("b", "up", 90*ms, true), report("c", "up", 85*ms, true)}, linkWord{"up", 85 * ms}, 0},
			{0, []linkReport{report("a", "down", 0, true), report("b", "down", 0, true)}, linkWord{"down", 85 * ms}, 0},
		},
		"down at once, up when it stays": {
			{0, []linkReport{report("a", "up", 80*ms, true)}, linkWord{"up", 80 * ms}, 0},
			{0, []linkReport{report("a", "down", 0, true)}, linkWord{"down", 80 * ms}, 0},
			{time.Second, []linkReport{report("a", "up", 80*ms, true)}, linkWord{"down", 80 * ms}, time.Second},
			{400 * ms, []linkReport{report("a", "up", 80*ms, true)}, linkWord{"down", 80 * ms}, 600 * ms},
			{100 * ms, []linkReport{report("a", "down", 0, true)}, linkWord{"down", 80 * ms}, 0},
			{100 * ms, []linkReport{report("a", "up", 80*ms, true)}, linkWord{"down", 80 * ms}, time.Second},
			{time.Second, []linkReport{report("a", "up", 80*ms, true)}, linkWord{"up", 80 * ms}, 0},
		},
		"silence of the control link is no word": {
			{0, []linkReport{report("a", "up", 80*ms, true)}, linkWord{"up", 80 * ms}, 0},
			{time.Hour, []linkReport{report("a", "up", 80*ms, false)}, linkWord{"up", 80 * ms}, 0},
			{0, []linkReport{report("a", "up", 80*ms, false), report("b", "down", 0, true)}, linkWord{"down", 80 * ms}, 0},
		},
		"small changes are not passed on": {
			{0, []linkReport{report("a", "up", 80*ms, true)}, linkWord{"up", 80 * ms}, 0},
			{0, []linkReport{report("a", "up", 99*ms, true)}, linkWord{"up", 80 * ms}, 0},
			{0, []linkReport{report("a", "up", 101234*time.Microsecond, true)}, linkWord{"up", 101 * ms}, 0},
			{0, []linkReport{report("a", "up", 1234*time.Microsecond, true)}, linkWord{"up", 1200 * time.Microsecond}, 0},
			{0, []linkReport{report("a", "up", 2100*time.Microsecond, true)}, linkWord{"up", 1200 * time.Microsecond}, 0},
			{0, []linkReport{report("a", "up", 0, true)}, linkWord{"up", 1200 * time.Microsecond}, 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			tracker := newLinkTracker()
			now := time.Unix(1000, 0)
			for i, s := range steps {
				now = now.Add(s.after)
				again := tracker.update(s.reports, now)
				if got := tracker.snapshot()[us]; got != s.want || again != s.again {
					t.Fatalf("step %d: %+v, again in %v; want %+v, %v", i, got, again, s.want, s.again)
				}
			}
			tracker.update(nil, now)
			if got := tracker.snapshot(); len(got) != 0 {
				t.Fatalf("a cluster that nobody reports on is still there: %v", got)
			}
		})
	}
}

func TestReadReport(t *testing.T) {
	got := readReport("a", &configv1.Report{Links: []*configv1.LinkReport{
		{Cluster: "us", State: "up", Connections: 4, RttMicros: 80_000},
		{Cluster: "Not A Cluster", State: "up"},
		{Cluster: "ap", State: "sideways"},
		{Cluster: "sa", State: "down", RttMicros: 1 << 62, Detail: string(make([]byte, 1000))},
	}}, time.Unix(1000, 0))
	if len(got) != 2 || got[0].rtt != 80*time.Millisecond || got[1].rtt != time.Minute || len(got[1].detail) > 256 {
		t.Fatalf("%+v", got)
	}
}
