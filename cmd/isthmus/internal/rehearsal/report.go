package rehearsal

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

//go:embed report.html.tmpl
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"short": short, "time": func(t time.Time) string { return t.Format("2006-01-02 15:04:05 MST") },
	"percent": func(f float64) string { return fmt.Sprintf("%.1f %%", 100*f) },
	"seconds": func(f float64) string { return fmt.Sprintf("%+.0f", f) },
	"sum":     func(by map[string]uint64, c string) uint64 { return by[c] },
	"share":   func(by map[string]float64, c string) float64 { return by[c] },
	"lower":   func(v Verdict) string { return strings.ToLower(string(v)) },
}).Parse(page))

// palette is how many colours the page has for clusters.
const palette = 6

// WriteHTML writes a result as one page that needs nothing else. All of what it holds is text to it, wherever it came from.
func WriteHTML(w io.Writer, r Result) error {
	requests, failed := r.Totals()
	v := view{Result: r, Requests: requests, FailedOf: failed, Table: r.Table(), Findings: r.Findings()}
	v.draw()
	return pageTemplate.Execute(w, &v)
}

// view is what the page shows.
type view struct {
	Result

	Requests, FailedOf uint64
	Table              [][]string
	Findings           [][2]string
	Areas              []area
	Failures           []bar
	Marks              []mark
	Ticks              []tick // of time
	Rates              []tick // of requests a second
	P50, P99           string // lines
	Times              []tick // of latencies
}

// area is one cluster's share of the traffic, as a polygon.
type area struct {
	Cluster string
	Colour  int
	Points  string
}

// bar is a second with failures; in thousandths of the picture.
type bar struct{ X, Y, Width, Height float64 }

// mark is the beginning or the end of the drill.
type mark struct {
	At   float64 // in percent of the width
	Text string
	Side string
}

// tick is a mark of an axis.
type tick struct {
	At   float64 // in percent from the left, or from the top
	Text string
}

// The pictures' coordinates: thousandths of their width and height, which the page stretches.
const full = 1000

// draw makes the pictures.
func (v *view) draw() {
	if len(v.Seconds) == 0 {
		return
	}
	first, last := v.Seconds[0].At, v.Seconds[len(v.Seconds)-1].At+1
	x := func(at float64) float64 { return round(full * (at - first) / (last - first)) }
	all := filled(v.Seconds)
	most := 1.0
	for _, s := range all {
		most = max(most, float64(s.Requests))
	}
	top := ceiling(most)
	y := func(n float64) float64 { return round(full * (1 - n/top)) }
	below := make([]float64, len(all))
	for i, c := range v.Clusters {
		var up, down []string
		for j, s := range all {
			base := below[j]
			below[j] += float64(s.By[c])
			for _, at := range [...]float64{s.At, s.At + 1} {
				up = append(up, fmt.Sprintf("%g,%g", x(at), y(below[j])))
				down = append(down, fmt.Sprintf("%g,%g", x(at), y(base)))
			}
		}
		slices.Reverse(down)
		v.Areas = append(v.Areas, area{c, i % palette, strings.Join(append(up, down...), " ")})
	}
	for _, s := range all {
		if s.Failed > 0 {
			height := max(float64(full)-y(float64(s.Failed)), 20) // to be seen, however few
			v.Failures = append(v.Failures, bar{x(s.At), round(full - height), round(x(s.At+1) - x(s.At)), round(height)})
		}
	}
	if v.Drill != nil {
		v.Marks = []mark{
			{x(0) / 10, v.Cluster + " looks dead", "left"},
			{x(v.During.To) / 10, "it is over", "right"},
		}
	}
	step := nice((last - first) / 6)
	for at := math.Ceil(first/step) * step; at < last; at += step {
		v.Ticks = append(v.Ticks, tick{x(at) / 10, fmt.Sprintf("%g s", at+0)})
	}
	for n := range 5 {
		v.Rates = append(v.Rates, tick{float64(100 - 25*n), fmt.Sprintf("%g", top*float64(n)/4)})
	}
	v.drawLatency(x)
}

// drawLatency draws how long requests took, on a scale of powers of ten.
func (v *view) drawLatency(x func(float64) float64) {
	low, high := time.Hour, time.Duration(0)
	for _, s := range v.Seconds {
		if s.P50 > 0 {
			low = min(low, s.P50)
		}
		high = max(high, s.P99)
	}
	if high == 0 {
		return
	}
	from := math.Floor(math.Log10(max(low.Seconds(), 1e-5)))
	to := max(math.Ceil(math.Log10(high.Seconds())), from+1)
	y := func(d time.Duration) float64 {
		return round(full * (1 - (math.Log10(max(d.Seconds(), 1e-9))-from)/(to-from)))
	}
	var p50, p99 []string
	for _, s := range v.Seconds {
		if s.P50 > 0 {
			p50 = append(p50, fmt.Sprintf("%g,%g", x(s.At+0.5), y(s.P50)))
			p99 = append(p99, fmt.Sprintf("%g,%g", x(s.At+0.5), y(s.P99)))
		}
	}
	v.P50, v.P99 = strings.Join(p50, " "), strings.Join(p99, " ")
	for e := from; e <= to; e++ {
		d := time.Duration(math.Round(math.Pow(10, e)*1e6)) * time.Microsecond
		v.Times = append(v.Times, tick{round(100 * (1 - (e-from)/(to-from))), d.String()})
	}
}

// filled has the seconds in which nothing was told, too: nobody called, or nobody could be asked.
func filled(in []Second) []Second {
	out := make([]Second, 0, len(in))
	for i, s := range in {
		if i > 0 {
			for at := in[i-1].At + 1; at < s.At; at++ {
				out = append(out, Second{At: at})
			}
		}
		out = append(out, s)
	}
	return out
}

// ceiling returns a round number above n.
func ceiling(n float64) float64 {
	step := nice(n / 4)
	return step * max(4, math.Ceil(n/step/4)*4)
}

// nice returns 1, 2 or 5 times a power of ten: the least that is not below n.
func nice(n float64) float64 {
	if n <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(n)))
	for _, m := range [...]float64{1, 2, 5} {
		if m*power >= n {
			return m * power
		}
	}
	return 10 * power
}

func round(f float64) float64 { return math.Round(f*10) / 10 }
