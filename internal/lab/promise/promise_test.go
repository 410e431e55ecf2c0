package promise

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
)

// story is a request each 10 ms for 10 s, of which the event is in the middle: us answers within 40 ms until then, ap in 60 ms after it. What is
// sent in the 200 ms after it takes until 250 ms after it.
func story(change func(i int, a *traffic.Answer)) Run {
	began := time.Unix(1000, 0)
	r := Run{Event: began.Add(5 * time.Second)}
	for i := range 1000 {
		a := traffic.Answer{Method: "GET", Status: 200, Sent: began.Add(time.Duration(i) * 10 * time.Millisecond), Cluster: "us", Took: 40 * time.Millisecond}
		if end(a).After(r.Event) {
			a.Cluster, a.Took = "ap", 60*time.Millisecond
			if a.Sent.Before(r.Event.Add(200 * time.Millisecond)) {
				a.Took = r.Event.Add(250 * time.Millisecond).Sub(a.Sent)
			}
		}
		if change != nil {
			change(i, &a)
		}
		r.Answers = append(r.Answers, a)
	}
	return r
}

func TestMeasure(t *testing.T) {
	failing := story(func(i int, a *traffic.Answer) {
		switch i {
		case 700:
			a.Status = 503
		case 701:
			a.Method, a.Status = "POST", 502
		}
	})
	flapping := story(func(i int, a *traffic.Answer) {
		if i >= 500 {
			a.Cluster = []string{"us", "ap"}[i/100%2]
		}
	})
	rising := story(func(i int, a *traffic.Answer) {
		a.Took = 10 * time.Millisecond
		a.Cluster = "us"
		// From 1 s after the event, over 2 s, more and more go to ap, evenly spread.
		if share := (float64(i) - 600) / 200; share >= 1 || share > 0 && float64(i*37%100)/100 < share {
			a.Cluster = "ap"
		}
	})
	losing := story(func(i int, a *traffic.Answer) {
		if i == 489 {
			a.Method, a.Status, a.Took = "POST", 502, 600*time.Millisecond
		}
	})
	warming := story(func(i int, a *traffic.Answer) {
		if i < 50 {
			a.Took = 500 * time.Millisecond
		}
	})
	noisy := story(func(i int, a *traffic.Answer) {
		if i > 520 && i < 800 && i%20 == 0 {
			a.Took += 10 * time.Millisecond
		}
	})
	for _, c := range []struct {
		words    string
		run      Run
		measured string
		kept     bool
	}{
		{"failed==0", story(nil), "0 of 1000 failed", true},
		{"failed==0", failing, "1 of 999 failed", false},
		{"broken==0", failing, "2 of 1000 failed", false},
		{"broken<=2", failing, "2 of 1000 failed", true},
		{"failed==0", Run{}, "0 of 0 failed", false},
		{"moved<=500ms", story(nil), "traffic moved in 250ms", true},
		{"moved<=200ms", story(nil), "traffic moved in 250ms", false},
		{"moved<=200ms", Run{}, "traffic moved in not seen", false},
		{"steady<=300ms", story(nil), "p99 steady in 170ms", true}, // from there on, one of a hundred is slow
		{"extra<=90ms", story(nil), "delay 240ms", false},
		{"p99.9<=400ms", story(nil), "p99.9 280ms", true},
		{"p99.9<=400ms", losing, "p99.9 280ms", true}, // no answer, so no slow one
		{"extra<=90ms", losing, "delay 560ms", false}, // but felt
		{"told<=500ms", losing, "failures told in 490ms", true},
		{"told<=400ms", losing, "failures told in 490ms", false},
		{"told<=400ms", story(nil), "failures told in 0s", true},
		{"steady<=300ms", warming, "p99 steady in 170ms", true}, // and not at once, because all are faster than the first were
		{"steady<=300ms", noisy, "p99 steady in 170ms", true},
		{"ramp:2s<=5%", rising, "share within 2.5% of a ramp that began after 1s", true},
		{"ramp:2s<=5%", story(nil), "share within 90.0% of a ramp that began after 0s", false},
		{"ramp:2s<=5%", Run{}, "no ramp was seen", false},
		{"switches<=1", story(nil), "1 switches", true},
		{"switches<=1", flapping, "5 switches", false},
	} {
		got, err := Measure(c.words, c.run)
		if err != nil || got.Measured != c.measured || got.Kept != c.kept {
			t.Errorf("%s: %+v, %v; want %q, kept: %t", c.words, got, err, c.measured, c.kept)
		}
	}
	if _, err := Measure("luck<=1s", Run{}); !errors.Is(err, ErrUnknown) {
		t.Errorf("an unknown measure: %v", err)
	}
	for _, words := range []string{"failed", "failed==x", "moved<=5"} {
		if _, err := Measure(words, Run{}); err == nil {
			t.Errorf("%s was taken", words)
		}
	}
}

func TestTable(t *testing.T) {
	figures := []Figure{{Promise: "0 failed", Measured: "0 of 10 failed", Kept: true}, {Promise: "moved in 1s", Measured: "moved in 2s", Timing: true}}
	var table Table
	table.Add(NewRow("b", "local", figures[:1]))
	held := NewRow("a", "netns", figures)
	held.HeldUp = 70123 * time.Microsecond
	table.Add(held)
	table.Add(NewRow("a", "local", append(figures[1:], Figure{Promise: "0 failed", Measured: "1 of 10 failed"})))
	want := `| event | on | promised | measured | | machine held up |
|---|---|---|---|---|---|
| a | local | moved in 1s; 0 failed | moved in 2s; 1 of 10 failed | broken | 0s |
| a | netns | 0 failed; moved in 1s | 0 of 10 failed; moved in 2s | late | 70ms |
| b | local | 0 failed | 0 of 10 failed | kept | 0s |
`
	if got := Markdown(table.Rows()); got != want {
		t.Errorf("\n%s\nwant\n%s", got, want)
	}
	if line := table.Rows()[1].String(); !strings.HasPrefix(line, `promise event="a" runtime=netns promised="0 failed; moved in 1s" measured=`) || !strings.HasSuffix(line, "verdict=late held_up=70ms") {
		t.Error(line)
	}
}
