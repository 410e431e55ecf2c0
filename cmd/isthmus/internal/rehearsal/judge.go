package rehearsal

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// lag is by how many seconds requests may be told late: sidecars tell once a second.
const lag = 2

// Facts are what a drill was, beside what was measured.
type Facts struct {
	Result            // what is filled in already: service, cluster, command and so on
	Baseline          time.Duration
	Finished          time.Time // when measuring ended
	Floor             float64   // requests a second, below which a drill proves nothing
	EndedEarly        string    // why the drill ended before its time; empty: it did not
	Unreached         []string  // controls that could not be asked, in words
	Interrupted       bool
	NothingToFailOver string // why no drill was begun; empty: one was
}

// Judge makes a result of what was measured.
func Judge(f Facts, r *Recorder) Result {
	out := f.Result
	points := r.points(out.Began)
	r.mu.Lock()
	ends := r.ends
	r.mu.Unlock()
	lasted := out.Ended.Sub(out.Began).Seconds()
	until := f.Finished.Sub(out.Began).Seconds()
	if out.Drill == nil {
		lasted, until = 0, 0
	}
	out.Before = phase(points, ends, -f.Baseline.Seconds()-1, -1) // the second before the edge is told of partly after it
	out.Before.From, out.Before.To = out.Before.From+1, 0
	edge := math.Round(lasted) // what is told by the second can't be cut finer
	out.During = phase(points, ends, 0, edge)
	out.After = phase(points, ends, edge, until)
	out.During.Failed += phase(points, ends, -1, 0).Failed
	out.Seconds = seconds(points, ends)
	own, problems := r.own()
	if out.Load != nil {
		out.Load.Requests, out.Load.Failures = len(own), problems
		for _, a := range own {
			out.Load.Slowest = max(out.Load.Slowest, a.Took)
			if a.Cluster == "" {
				out.Load.Failed++
			}
		}
	}
	if len(own) > 0 {
		out.During.To, out.After.From = lasted, lasted
		for _, p := range []*Phase{&out.Before, &out.During, &out.After} {
			p.take(own, out.Began)
		}
		out.Seconds = ownSeconds(out.Seconds, own, out.Began)
	}
	out.Seconds = slices.DeleteFunc(out.Seconds, func(s Second) bool { return s.At < -f.Baseline.Seconds() || s.At+1 > until })
	out.Clusters = answering(out.Seconds, out.Cluster)
	out.MovedIn = moved(&out, own)
	out.BackIn = back(&out, own)
	out.Callers = callers(out.Callers, points, &out, edge)
	out.Takers = takers(points, &out, edge)
	if len(own) > 0 {
		out.Takers = ownTakers(own, &out)
	}
	out.Order = order(&out)
	out.decide(f)
	return out
}

// within reports whether a second is of a part of the time, which begins there.
func within(second int, from, to float64) bool {
	return float64(second) >= from && float64(second) < to
}

func phase(points []point, ends []time.Duration, from, to float64) Phase {
	p := Phase{From: from, To: to, Shares: make(map[string]float64)}
	took := latencies{ends: ends}
	by := make(map[string]uint64)
	answered := uint64(0)
	for _, s := range points {
		if !within(s.second, from, to) {
			continue
		}
		p.Requests += s.Requests
		p.Failed += s.Failed
		p.Retried += s.Retried
		p.Hedged += s.Hedged
		took.add(s.Latency)
		if s.answers != "" {
			by[s.answers] += s.Requests
			answered += s.Requests
		}
	}
	for c, n := range by {
		p.Shares[c] = float64(n) / float64(answered)
	}
	if to > from {
		p.Rate = float64(p.Requests) / (to - from)
	}
	p.P50, p.P99 = took.quantile(0.5), took.quantile(0.99)
	return p
}

// answering returns the clusters that answered, first by name.
func answering(all []Second, first string) []string {
	names := map[string]bool{first: true}
	for _, s := range all {
		for c := range s.By {
			if c != "" {
				names[c] = true
			}
		}
	}
	delete(names, first)
	return append([]string{first}, slices.Sorted(maps.Keys(names))...)
}

// moved tells when the drilled cluster answered last.
func moved(r *Result, own []Answer) Measured {
	if r.Drill == nil {
		return Measured{}
	}
	if len(own) > 0 {
		m := Measured{Known: true, Exact: true}
		first := time.Duration(0) // answer of another
		for _, a := range own {
			took := a.Ended.Sub(r.Began)
			switch {
			case took <= 0 || !a.Ended.Before(r.Ended) || a.Cluster == "":
			case a.Cluster == r.Cluster:
				m.Took = max(m.Took, took)
			case first == 0 || took < first:
				first = took
			}
		}
		m.Took = max(m.Took, first)
		return m
	}
	m := Measured{Known: true}
	for _, s := range r.Seconds {
		// What was answered after the end can be told of in the last second of it.
		if within(int(s.At), 0, r.During.To-1) && s.By[r.Cluster] > 0 {
			m.Took = time.Duration(math.Round(s.At+1)) * time.Second
		}
	}
	return m
}

// backShare is which part of its share before a cluster must have again to be back.
const backShare = 0.8

// back tells when the drilled cluster had its share again.
func back(r *Result, own []Answer) Measured {
	want := backShare * r.Before.Shares[r.Cluster]
	if r.Drill == nil || want == 0 {
		return Measured{}
	}
	if len(own) > 0 {
		return backOf(r, own, want)
	}
	in := 0
	for _, s := range r.Seconds {
		if s.At < r.During.To {
			continue
		}
		answered := s.Requests - s.By[""]
		if answered == 0 || float64(s.By[r.Cluster])/float64(answered) < want {
			in = 0
			continue
		}
		if in++; in == lag {
			return Measured{Known: true, Took: time.Duration(max(0, s.At-lag+1-r.During.To) * float64(time.Second))}
		}
	}
	return Measured{}
}

// backWindow is over how many answers a share is reckoned.
const backWindow = 20

// backOf is back, by the answers themselves: the first of a run of them in which the cluster has its share.
func backOf(r *Result, own []Answer, want float64) Measured {
	var late []Answer
	for _, a := range own {
		if !a.Ended.Before(r.Ended) {
			late = append(late, a)
		}
	}
	of := 0
	for i, a := range late {
		if a.Cluster == r.Cluster {
			of++
		}
		if i >= backWindow && late[i-backWindow].Cluster == r.Cluster {
			of--
		}
		if i >= backWindow-1 && float64(of)/backWindow >= want {
			return Measured{Known: true, Exact: true, Took: late[i-backWindow+1].Ended.Sub(r.Ended)}
		}
	}
	return Measured{}
}

// settled is from which second on requests had moved: the lag of reports after the drilled cluster's last answer.
func (r *Result) settled() float64 { return math.Ceil(r.MovedIn.Took.Seconds()) + lag }

// callers fills in what the callers saw.
func callers(asked []Caller, points []point, r *Result, lasted float64) []Caller {
	by := make(map[string]*Caller)
	for i := range asked {
		by[asked[i].Cluster] = &asked[i]
	}
	sum := make(map[string]uint64)
	for _, p := range points {
		c := by[p.caller]
		if c == nil || !within(p.second, 0, lasted) {
			continue
		}
		c.Requests += p.Requests
		c.Failed += p.Failed
		if p.answers != "" && float64(p.second) >= r.settled() {
			if c.Seen == nil {
				c.Seen = make(map[string]float64)
			}
			c.Seen[p.answers] += float64(p.Requests)
			sum[p.caller] += p.Requests
		}
	}
	for name, c := range by {
		for answers := range c.Seen {
			c.Seen[answers] /= float64(sum[name])
		}
	}
	return asked
}

// takers tells who answered once requests had moved, the most first. Of a drill that was over before reports tell that, it is who answered
// meanwhile, besides the drilled cluster.
func takers(points []point, r *Result, lasted float64) []Taker {
	answered := func(from float64, but string) (by map[string]uint64, total uint64) {
		by = make(map[string]uint64)
		for _, p := range points {
			if p.answers != "" && p.answers != but && float64(p.second) >= from && within(p.second, 0, lasted) {
				by[p.answers] += p.Requests
				total += p.Requests
			}
		}
		return by, total
	}
	by, total := answered(r.settled(), "")
	if total == 0 {
		by, total = answered(0, r.Cluster)
	}
	var out []Taker
	for c, n := range by {
		if c != r.Cluster {
			out = append(out, Taker{c, float64(n) / float64(total)})
		}
	}
	slices.SortFunc(out, func(a, b Taker) int { return cmp.Or(cmp.Compare(b.Share, a.Share), cmp.Compare(a.Cluster, b.Cluster)) })
	return out
}

// tolerance is how far a share may be off what was expected before that is worth a word: a fifth of all.
const tolerance = 0.2

// order compares where requests went with where the sidecars had said that they would go.
func order(r *Result) Order {
	o := Order{}
	var off []string
	for _, c := range r.Callers {
		if len(c.Expected) == 0 || len(c.Seen) == 0 {
			continue
		}
		o.Known = true
		for _, name := range slices.Sorted(maps.Keys(union(c.Expected, c.Seen))) {
			if math.Abs(c.Expected[name]-c.Seen[name]) > tolerance {
				off = append(off, fmt.Sprintf("callers in %s: %s answered %.0f %%, and %.0f %% was expected", c.Cluster, name, 100*c.Seen[name], 100*c.Expected[name]))
			}
		}
	}
	switch {
	case !o.Known:
		o.Words = "not known: no caller's sidecar could be asked beforehand, none called, or the drill was over too soon after they had moved"
	case len(off) > 0:
		o.Words = strings.Join(off, "; ")
	default:
		o.Kept, o.Words = true, "requests went where the callers' sidecars had said that they would"
	}
	return o
}

func union(a, b map[string]float64) map[string]float64 {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// decide comes to the verdict.
func (r *Result) decide(f Facts) {
	failed := r.During.Failed + r.After.Failed
	if r.Load != nil && uint64(r.Load.Failed) > failed { //nolint:gosec // not negative
		failed = uint64(r.Load.Failed) //nolint:gosec // not negative
	}
	invalid := func(why, advice string) {
		r.Verdict = Invalid
		r.Reasons, r.Advice = append(r.Reasons, why), append(r.Advice, advice)
	}
	fail := func(why, advice string) {
		if r.Verdict != Invalid {
			r.Verdict = Fail
		}
		r.Reasons, r.Advice = append(r.Reasons, why), append(r.Advice, advice)
	}
	switch {
	case f.Interrupted:
		invalid("it was interrupted", "Run it again; the drill itself is over.")
	case f.NothingToFailOver != "":
		invalid(f.NothingToFailOver, r.moreTraffic())
	case f.EndedEarly != "":
		invalid("the drill ended after "+short(r.Ended.Sub(r.Began))+": "+f.EndedEarly, "Run it again.")
	case r.Before.Failed > 0:
		invalid(fmt.Sprintf("%d of %d requests failed before it began", r.Before.Failed, r.Before.Requests), "Find out why they do (isthmus status, isthmus explain), and run it again.")
	case r.During.Rate < f.Floor:
		invalid(fmt.Sprintf("%.1f requests a second during the drill are less than the %.0f that prove something", r.During.Rate, f.Floor), r.moreTraffic())
	}
	if failed > 0 && r.Drill != nil {
		allowed := "; 0 are allowed"
		if r.Verdict == Invalid {
			allowed = " meanwhile" // a second verdict would contradict the first
		}
		fail(fmt.Sprintf("%d of %d requests failed%s", failed, r.During.Requests+r.After.Requests, allowed),
			"isthmus timeline "+r.Service+" and the callers' logs say why; isthmus explain CLUSTER/WORKLOAD "+r.Service+" --as-if "+r.Cluster+"=down says where they should have gone.")
	}
	whole := r.Drill != nil && f.EndedEarly == "" && !f.Interrupted // what follows is of a drill that was carried out
	if whole && r.MovedIn.Known && r.During.To-r.MovedIn.Took.Seconds() <= 1 && r.During.To > lag+1 {
		fail(r.Cluster+" went on answering until the end", "Somebody reaches its copies past the mesh, or its programs did not hear of the drill: isthmus status.")
	}
	if whole && len(r.Takers) == 0 && r.Verdict == "" {
		fail("nobody answered in its place", "Does another cluster export the service to the callers' clusters? isthmus get imports.")
	}
	if whole && r.Order.Known && !r.Order.Kept {
		r.Remarks = append(r.Remarks, "The order was not what was expected: "+r.Order.Words+".")
	}
	if whole && !r.BackIn.Known {
		r.Remarks = append(r.Remarks, r.Cluster+" did not have its share again when measuring ended, "+short(f.Finished.Sub(r.Ended))+
			" after the drill: a FailoverPolicy's failback may want more time (--settle).")
	}
	for _, u := range f.Unreached {
		r.Remarks = append(r.Remarks, "Not all callers were measured: "+u)
	}
	if r.Verdict == "" {
		r.Verdict = Pass
		r.Reasons = append(r.Reasons, fmt.Sprintf("%d requests, none failed", r.During.Requests+r.After.Requests))
	}
}

// moreTraffic says how to get a drill that proves something.
func (r *Result) moreTraffic() string {
	return "Drill when the service is called (isthmus drill looks at what callers' sidecars count), have the drill make traffic of its own (--load 50), or lower --floor if you know better."
}

// Totals returns the requests of the drill and of what followed, and how many failed.
func (r *Result) Totals() (requests, failed uint64) {
	failed = r.During.Failed + r.After.Failed
	if r.Load != nil {
		failed = max(failed, uint64(r.Load.Failed)) //nolint:gosec // not negative
	}
	return r.During.Requests + r.After.Requests, failed
}

// Lasted returns how long the drill was on.
func (r *Result) Lasted() time.Duration { return r.Ended.Sub(r.Began) }

// short is a duration for people.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	default:
		return d.Round(100 * time.Millisecond).String()
	}
}

// String tells it for people.
func (m Measured) String() string {
	switch {
	case !m.Known:
		return "not seen"
	case m.Exact:
		return short(m.Took)
	case m.Took == 0:
		return "at once"
	default:
		return "within " + short(m.Took)
	}
}
