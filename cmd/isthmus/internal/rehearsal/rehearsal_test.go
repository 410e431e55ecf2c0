package rehearsal

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// told is what a control tells: for each second since the beginning, who answered how many.
type told struct {
	caller string
	by     map[string]func(second int) (requests, failed uint64)
}

func (c told) record(r *Recorder, from, to int) {
	t := admin.Traffic{Cluster: c.caller, Now: began, LatencyEnds: []time.Duration{time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond}}
	for cluster, at := range c.by {
		s := admin.TrafficSeries{Cluster: cluster}
		for second := from; second < to; second++ {
			if n, failed := at(second); n > 0 {
				s.Seconds = append(s.Seconds, admin.TrafficSecond{At: began.Add(time.Duration(second) * time.Second), Requests: n, Failed: failed, Latency: []uint64{0, n}})
			}
		}
		t.Series = append(t.Series, s)
	}
	r.Add(t, began.Add(half), began.Add(half)) // its clock is half a second behind: seconds come out even
}

// during is n a second while the drill is on, else elsewhere.
func during(n, elsewhere uint64) func(int) (uint64, uint64) {
	return func(second int) (uint64, uint64) {
		if second >= 0 && second < 10 {
			return n, 0
		}
		return elsewhere, 0
	}
}

func facts() Facts {
	f := Facts{Baseline: 5 * time.Second, Finished: began.Add(15 * time.Second), Floor: 10}
	f.Service, f.Cluster, f.How, f.Command = "checkout.shop", "eu", admin.DrillRefuse, "isthmus drill"
	f.Began, f.Ended = began, began.Add(10*time.Second)
	f.Drill = &admin.Drill{ID: "d-1", Programs: []string{"sidecar/shop/checkout-0"}}
	f.Callers = []Caller{{Cluster: "ap", Expected: map[string]float64{"us": 1}}}
	return f
}

func TestVerdicts(t *testing.T) {
	moves := map[string]func(int) (uint64, uint64){"eu": during(0, 50), "us": during(50, 0)}
	with := func(cluster string, f func(int) (uint64, uint64)) map[string]func(int) (uint64, uint64) {
		out := map[string]func(int) (uint64, uint64){cluster: f}
		for c, g := range moves {
			if out[c] == nil {
				out[c] = g
			}
		}
		return out
	}
	for name, test := range map[string]struct {
		by     map[string]func(int) (uint64, uint64)
		change func(*Facts)
		want   Verdict
		why    string
	}{
		"nothing fails": {moves, nil, Pass, "none failed"},
		"one fails": {with("", func(second int) (uint64, uint64) {
			if second == 3 {
				return 1, 1
			}
			return 0, 0
		}), nil, Fail, "1 of 751 requests failed"},
		"one fails before": {with("", func(second int) (uint64, uint64) {
			if second == -2 {
				return 1, 1
			}
			return 0, 0
		}), nil, Invalid, "failed before it began"},
		"it goes on answering": {with("eu", during(50, 50)), nil, Fail, "went on answering"},
		"nobody else":          {with("us", during(0, 0)), func(f *Facts) { f.Floor = 0 }, Fail, "nobody answered in its place"},
		"over before it is told who answers": {with("eu", func(second int) (uint64, uint64) {
			if second <= 0 {
				return 50, 0
			}
			return 0, 0
		}), func(f *Facts) { f.Ended = began.Add(3 * time.Second) }, Pass, "none failed"},
		"too little":  {moves, func(f *Facts) { f.Floor = 51 }, Invalid, "prove something"},
		"ended early": {moves, func(f *Facts) { f.EndedEarly = "it was stopped" }, Invalid, "it was stopped"},
		"ended early and one fails": {with("", func(second int) (uint64, uint64) {
			if second == 3 {
				return 1, 1
			}
			return 0, 0
		}), func(f *Facts) { f.EndedEarly = "control is away" }, Invalid, "1 of 751 requests failed meanwhile"},
		"interrupted": {moves, func(f *Facts) { f.Interrupted = true }, Invalid, "interrupted"},
	} {
		t.Run(name, func(t *testing.T) {
			var r Recorder
			told{"ap", test.by}.record(&r, -10, 15)
			f := facts()
			if test.change != nil {
				test.change(&f)
			}
			got := Judge(f, &r)
			if words := strings.Join(got.Reasons, "; "); got.Verdict != test.want || !strings.Contains(words, test.why) {
				t.Errorf("%s: %s, want %s: …%s…", got.Verdict, words, test.want, test.why)
			}
			if got.Verdict != Pass && len(got.Advice) == 0 {
				t.Error("it does not say what to do")
			}
		})
	}
}

func TestFigures(t *testing.T) {
	var r Recorder
	told{"ap", map[string]func(int) (uint64, uint64){"eu": during(0, 50), "us": during(50, 0)}}.record(&r, -10, 15)
	got := Judge(facts(), &r)
	if got.Before.Requests != 250 || got.During.Requests != 500 || got.During.Rate != 50 || got.During.Shares["us"] != 1 || got.Before.Shares["eu"] != 1 {
		t.Errorf("before %+v, during %+v", got.Before, got.During)
	}
	if got.During.P50 <= time.Millisecond || got.During.P99 > 2*time.Millisecond {
		t.Errorf("p50 %v, p99 %v", got.During.P50, got.During.P99)
	}
	if !got.Order.Kept || len(got.Takers) != 1 || got.Takers[0].Cluster != "us" || !got.BackIn.Known || got.BackIn.Took != 0 || got.MovedIn.Took != 0 {
		t.Errorf("order %+v, takers %+v, back %+v, moved %+v", got.Order, got.Takers, got.BackIn, got.MovedIn)
	}
	f := facts()
	f.Callers[0].Expected = map[string]float64{"sa": 1}
	if got = Judge(f, &r); got.Order.Kept || !strings.Contains(got.Order.Words, "sa answered 0 %, and 100 % was expected") || len(got.Remarks) == 0 {
		t.Errorf("order %+v, %q", got.Order, got.Remarks)
	}
}

// What the drill's own load saw counts, to the millisecond.
func TestOwnLoad(t *testing.T) {
	var r Recorder
	f := facts()
	f.Load = &Load{From: "eu/web", URL: "http://checkout.shop/", Rate: 100}
	for at := -5 * time.Second; at < 15*time.Second; at += 10 * time.Millisecond {
		a := Answer{Ended: began.Add(at), Took: 3 * time.Millisecond, Cluster: "eu"}
		if at > 42*time.Millisecond && at < 12*time.Second {
			a.Cluster = "us"
		}
		if at == 5*time.Second {
			a.Cluster, a.Problem = "", "status 503"
		}
		r.Answered(a)
	}
	got := Judge(f, &r)
	if got.Verdict != Fail || got.MovedIn.Took != 50*time.Millisecond || !got.MovedIn.Exact {
		t.Errorf("%s, moved in %+v", got.Verdict, got.MovedIn)
	}
	if !got.BackIn.Known || got.BackIn.Took < 1900*time.Millisecond || got.BackIn.Took > 2200*time.Millisecond {
		t.Errorf("back in %+v", got.BackIn)
	}
	if got.Load.Failed != 1 || len(got.Load.Failures) != 1 || got.Before.P50 != 3*time.Millisecond || len(got.Seconds) != 20 {
		t.Errorf("load %+v, before %+v, %d seconds", got.Load, got.Before, len(got.Seconds))
	}
}

// Names and evidence come from elsewhere: on the page, and on the terminal, they are text.
func TestPage(t *testing.T) {
	evil := "</title><script>alert(1)</script>\"onload=\"x\x1b[2J"
	var r Recorder
	told{"ap", map[string]func(int) (uint64, uint64){"eu": during(0, 50), evil: during(50, 0)}}.record(&r, -10, 15)
	f := facts()
	f.Service, f.Command = evil, evil
	f.Timeline = []Decided{{Who: evil, Before: evil, After: evil, Why: evil}}
	f.Unreached = []string{evil}
	f.Callers[0].Cluster = evil
	var page, text bytes.Buffer
	result := Judge(f, &r)
	if err := WriteHTML(&page, result); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"<script", `"onload=`, "http-equiv=\"refresh", "src=", "href=", "@import", "url("} {
		if strings.Contains(page.String(), bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	for _, want := range []string{"<polygon", "<title id=", "<desc id=", "prefers-color-scheme: dark", "@media print", "default-src 'none'", "Second by second"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if err := WriteText(&text, result, "page.html"); err != nil || !strings.Contains(text.String(), "PASS") || strings.Contains(text.String(), "\x1b") {
		t.Errorf("%v\n%s", err, text.String())
	}
	f.Drill, f.NothingToFailOver = nil, "nothing was drilled"
	page.Reset()
	if err := WriteHTML(&page, Judge(f, &r)); err != nil {
		t.Fatal(err)
	}
	if err := WriteHTML(&page, Judge(Facts{}, new(Recorder))); err != nil {
		t.Fatal(err)
	}
}
