package topology_test

import (
	"maps"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/topology"
)

// TestAsIfIsWhatWouldBe: what is foretold is what Choose says once it has happened, and nothing is foretold without being asked.
func TestAsIfIsWhatWouldBe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		place := rapid.SampledFrom([]string{"c0", "c1", "c2"}).Draw(t, "down")
		s, q, load := w.snapshot(), w.query, w.load
		now, err := topology.ExplainAsIf(s, q, load, nil)
		if err != nil || len(now.AsIf) > 0 {
			t.Fatalf("%+v, %v", now, err)
		}
		x, err := topology.ExplainAsIf(s, q, load, []string{place})
		happened := load
		happened.Suspected = maps.Clone(load.Suspected)
		there := false
		for _, r := range now.Rows {
			if r.Cluster.String() == place {
				there = true
				happened.Suspected[topology.Target{Service: q.Service, Port: q.Port, Cluster: r.Cluster, Endpoint: r.Endpoint}] = "it is down"
			}
		}
		if there != (err == nil) {
			t.Fatalf("a copy is in %s: %t, and %v", place, there, err)
		}
		if !there {
			return
		}
		then := topology.Explain(topology.Choose(s, q, happened))
		sum, left := 0.0, false
		for i, r := range x.Rows {
			if r.AsIf == nil || r.Traffic != now.Rows[i].Traffic || r.State != now.Rows[i].State {
				t.Fatalf("row %+v, without the question %+v", r, now.Rows[i])
			}
			sum += r.AsIf.Traffic
			if r.Cluster.String() == place {
				if r.AsIf.Traffic != 0 || r.AsIf.State != topology.Excluded {
					t.Fatalf("it is down, and %+v", r.AsIf)
				}
				continue
			}
			left = left || r.Rank > 0
			for _, o := range then.Rows {
				if o.Cluster == r.Cluster && o.Endpoint == r.Endpoint && (r.AsIf.Traffic < o.Traffic-epsilon || o.State != r.AsIf.State || o.Rank != r.AsIf.Rank) {
					t.Fatalf("foretold %+v, came %+v", r.AsIf, o)
				}
			}
		}
		if want := map[bool]float64{true: 1}[left]; math.Abs(sum-want) > epsilon {
			t.Fatalf("a copy is left: %t, and the shares add to %v", left, sum)
		}
	})
}

func TestAsIfNowhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		_, err := topology.ExplainAsIf(w.snapshot(), w.query, w.load, []string{"mars"})
		if err == nil || !strings.Contains(err.Error(), `"mars": no copy of`) {
			t.Fatal(err)
		}
	})
}
