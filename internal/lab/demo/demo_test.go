package demo

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
)

// answer is one answer that has just come.
func answer(w *watch, caller int, cluster string, took time.Duration) {
	w.add(traffic.Answer{Worker: caller, Status: 200, Cluster: cluster, Sent: time.Now().Add(-took), Took: took})
}

func TestMovedCountsTheLastCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(3)
		for i := range 3 {
			answer(w, i, "us", time.Millisecond)
		}
		if got, err := w.answering(t.Context()); got != "us" || err != nil {
			t.Errorf("answering: %q, %v", got, err)
		}
		killed := time.Now()
		w.killed("us", killed)
		go func() {
			answer(w, 0, "us", time.Millisecond) // was on its way
			time.Sleep(100 * time.Millisecond)
			answer(w, 0, "ap", 90*time.Millisecond)
			answer(w, 1, "c4", 5*time.Millisecond)
			time.Sleep(100 * time.Millisecond)
			w.add(traffic.Answer{Worker: 2, Err: errors.New("reset")}) // a failure moves nobody
			time.Sleep(50 * time.Millisecond)
			answer(w, 2, "ap", 240*time.Millisecond)
			answer(w, 2, "ap", time.Hour) // after all had moved
		}()
		got, err := w.allMoved(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := Failover{From: "us", To: "ap", Moved: 250, Slowest: 240}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("failover (-want +got):\n%s", d)
		}
		go func() {
			time.Sleep(time.Second)
			answer(w, 1, "us", time.Millisecond)
		}()
		if err := w.back(t.Context(), "us"); err != nil || time.Since(killed) != 1250*time.Millisecond {
			t.Errorf("back after %s: %v", time.Since(killed), err)
		}
	})
}

func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &run{cfg: Config{}.filled(), start: time.Now(), watch: newWatch(callers)}
		r.tally.Add(traffic.Answer{Status: 503})
		_, err := r.patiently(t.Context(), "an answer", r.watch.answering)
		if err == nil || !strings.Contains(err.Error(), "waited 30s for an answer (1 requests, 1 failed, answered by nobody); the first failure: status 503") {
			t.Errorf("%v", err)
		}
	})
}

func TestVerdict(t *testing.T) {
	good := traffic.Answer{Status: 200, Cluster: "us", Took: time.Millisecond}
	for _, c := range []struct {
		name string
		add  func(*traffic.Tally)
		want string
	}{
		{"all well", func(t *traffic.Tally) {
			for range 5000 {
				t.Add(good)
			}
		}, ""},
		{"one failed", func(t *traffic.Tally) {
			for range 5000 {
				t.Add(good)
			}
			t.Add(traffic.Answer{Status: 503})
		}, "1 of 5001 requests failed; the first: status 503"},
		{"too little traffic", func(t *traffic.Tally) { t.Add(good) }, "prove nothing"},
	} {
		r := &run{cfg: Config{}.filled(), start: time.Now()}
		c.add(&r.tally)
		r.count()
		err := r.judge()
		if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, ErrVerdict) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// The report's shape is what others read: its fields don't move.
func TestReport(t *testing.T) {
	var b bytes.Buffer
	r := Report{
		Clusters: 3, Requests: Requests{Total: 7, ByCluster: map[string]int{"us": 4, "ap": 3}},
		Events: []Event{{At: 5, What: "killed", Cluster: "us"}}, Failover: Failover{Moved: 140}, Verdict: Pass,
	}
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Clusters int
		Requests struct {
			Total, Failed int
			ByCluster     map[string]int `json:"by_cluster"`
		}
		Events []struct {
			At            int `json:"t_ms"`
			What, Cluster string
		}
		Failover struct {
			Moved int `json:"moved_ms"`
		}
		Verdict string
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Clusters != 3 || got.Requests.Total != 7 || got.Requests.ByCluster["ap"] != 3 || got.Events[0].At != 5 || got.Failover.Moved != 140 || got.Verdict != "pass" {
		t.Errorf("%+v", got)
	}
}
