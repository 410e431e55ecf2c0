package sidecar

import (
	"fmt"
	"strings"
	"testing"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// shared is a plan of one tier.
func shared(t *testing.T, reason topology.Reason, shares map[string]float64) *topology.Plan {
	t.Helper()
	name, err := topology.ParseServiceName("checkout.shop")
	if err != nil {
		t.Fatal(err)
	}
	p := &topology.Plan{Query: topology.Query{Service: name, Port: 80}}
	for _, c := range []string{"eu", "us"} {
		cluster, err := topology.ParseClusterName(c)
		if err != nil {
			t.Fatal(err)
		}
		candidate := topology.Candidate{Cluster: cluster, Target: p.Query.Target(cluster, ""), Share: 1, Reason: topology.Reason{Cause: topology.ByRTT}}
		if shares[c] == 0 {
			candidate.Reason = reason
		}
		p.Tiers = append(p.Tiers, topology.PlanTier{Name: c, Portion: shares[c], Candidates: []topology.Candidate{candidate}})
	}
	return p
}

func words(turns []*configv1.Turn) string {
	var lines []string
	for _, m := range turns {
		shares := func(in []*configv1.ClusterShare) (out []string) {
			for _, s := range in {
				out = append(out, fmt.Sprintf("%s %.0f%%", s.GetCluster(), 100*s.GetShare()))
			}
			return out
		}
		line := fmt.Sprintf("%d %v to %v", m.GetAtMillis(), shares(m.GetBefore()), shares(m.GetAfter()))
		for _, e := range m.GetEvidence() {
			line += fmt.Sprintf(" %s=%s(%s)", e.GetCluster(), e.GetCause(), e.GetDetail())
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestTurns(t *testing.T) {
	var notes turns
	at := func(ms int64) time.Time { return time.UnixMilli(ms) }
	well, ill := topology.Reason{Cause: topology.ByRTT}, topology.Reason{Cause: topology.Ejected, Detail: "3 resets in a row"}
	notes.note(shared(t, well, map[string]float64{"eu": 1}), at(1000))
	notes.note(shared(t, well, map[string]float64{"eu": 0.995, "us": 0.005}), at(1500))
	if got := words(notes.report(true, at(2000))); got != "" {
		t.Errorf("the first plan, and what is like it: %s", got)
	}
	notes.note(shared(t, ill, map[string]float64{"us": 1}), at(2500))
	want := "2500 [eu 100%] to [us 100%] eu=ejected(3 resets in a row)"
	if got := words(notes.report(false, at(2600))); got != want {
		t.Errorf("got %s", got)
	}
	if got := words(notes.report(false, at(2700))); got != "" {
		t.Errorf("told twice: %s", got)
	}
	if got := words(notes.report(true, at(2800))); got != want {
		t.Errorf("on another stream: %s", got)
	}
	// A ramp is told once a second, and to its end.
	for ms := int64(3000); ms <= 4900; ms += 100 {
		notes.note(shared(t, well, map[string]float64{"eu": float64(ms-2900) / 2000, "us": float64(4900-ms) / 2000}), at(ms))
	}
	want = "3000 [us 100%] to [eu 30% us 70%] eu=by_rtt()\n3600 [eu 30% us 70%] to [eu 80% us 20%] eu=by_rtt() us=by_rtt()"
	if got := words(notes.report(false, at(5000))); got != want {
		t.Errorf("got %s", got)
	}
	if got := words(notes.report(false, at(6000))); got != "4600 [eu 80% us 20%] to [eu 100%] eu=by_rtt() us=by_rtt()" {
		t.Errorf("got %s", got)
	}
	// While control is away the latest are kept.
	for i := range int64(1000) {
		notes.note(shared(t, ill, map[string]float64{"us": float64(i % 2), "eu": float64(1 - i%2)}), at(10_000+2000*i))
	}
	if got := notes.report(true, at(1e10)); len(got) != configstream.MaxTurns || got[len(got)-1].GetAtMillis() != 10_000+2000*999 {
		t.Errorf("%d turns", len(got))
	}
}
