package quota_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/trust/quota"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func limiter(t interface {
	Helper()
	Fatal(args ...any)
}, l quota.Limit,
) *quota.Limiter {
	t.Helper()
	made, err := quota.NewLimiter(l)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestTake(t *testing.T) {
	l := limiter(t, quota.Limit{Name: "q", Rate: 2, Burst: 3})
	key := quota.Key{A: "spiffe://eu.test/ns/shop/sa/web"}
	for k, want := range []quota.Decision{
		{Allowed: true, Remaining: 2, Reset: 500 * time.Millisecond},
		{Allowed: true, Remaining: 1, Reset: time.Second},
		{Allowed: true, Remaining: 0, Reset: 500 * time.Millisecond},
		{Reset: 500 * time.Millisecond},
		{Reset: 500 * time.Millisecond},
	} {
		if got := l.Take(key, start); got != want {
			t.Errorf("request %d: %+v, want %+v", k, got, want)
		}
	}
	if d := l.Take(quota.Key{A: "another"}, start); !d.Allowed {
		t.Error("another key is refused")
	}
	if d := l.Take(key, start.Add(499*time.Millisecond)); d.Allowed {
		t.Error("half a token was enough")
	}
	if d := l.Take(key, start.Add(500*time.Millisecond)); !d.Allowed || d.Remaining != 0 {
		t.Errorf("after half a second: %+v", d)
	}
	if d := l.Take(key, start.Add(-time.Hour)); d.Allowed {
		t.Error("a clock that goes back fills the bucket")
	}
	if d := l.Take(key, start.Add(time.Hour)); d.Remaining != 2 {
		t.Errorf("after an hour %d are left, want the burst less one", d.Remaining)
	}
}

func TestLimitsAreChecked(t *testing.T) {
	for _, bad := range []quota.Limit{
		{},
		{Rate: -1},
		{Rate: math.NaN()},
		{Rate: math.Inf(1)},
		{Rate: 1, Burst: -1},
		{Rate: 1, Window: -1},
		{Rate: 1, Shared: true, Replicas: -1},
		{Rate: 1, MaxKeys: -1},
		{Rate: 2 * quota.MaxRate},
		{Rate: 1, Burst: 2 * quota.MaxBurst},
	} {
		if _, err := quota.NewLimiter(bad); err == nil {
			t.Errorf("%+v passes", bad)
		}
	}
}

func TestHeaders(t *testing.T) {
	l := quota.Limit{Name: `shop/"checkout"\per-user`, Rate: 100.0 / 60, Window: time.Minute}
	b := l.AppendPolicy(nil)
	b = quota.Limit{Name: "fast", Rate: 10, Window: time.Second}.AppendPolicy(b)
	if got, want := string(b), `"shop/\"checkout\"\\per-user";q=100;w=60, "fast";q=10;w=1`; got != want {
		t.Errorf("RateLimit-Policy: %s, want %s", got, want)
	}
	d := quota.Decision{Remaining: 7, Reset: 1001 * time.Millisecond}
	if got, want := string(quota.Limit{Name: "a\nb"}.AppendState(nil, d)), `"a_b";r=7;t=2`; got != want {
		t.Errorf("RateLimit: %s, want %s", got, want)
	}
	if got := d.RetryAfter(); got != "2" {
		t.Errorf("Retry-After: %s, want 2", got)
	}
	if got := (quota.Decision{Reset: time.Millisecond}).RetryAfter(); got != "1" {
		t.Errorf("Retry-After: %s, want 1", got)
	}
}

// TestForgettingFillsNoBucket: no crowd of keys makes a key's own bucket anew.
func TestForgettingFillsNoBucket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := quota.Limit{Name: "q", Rate: rapid.Float64Range(0.1, 5).Draw(t, "rate"), Burst: rapid.IntRange(1, 5).Draw(t, "burst"), MaxKeys: rapid.IntRange(1, 6).Draw(t, "keys")}
		l := limiter(t, limit)
		now := start
		admitted := map[string]int{}
		for range rapid.IntRange(50, 400).Draw(t, "requests") {
			now = now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "pause")) * time.Millisecond)
			key := fmt.Sprint(rapid.IntRange(0, 12).Draw(t, "key"))
			if l.Take(quota.Key{A: key}, now).Allowed {
				admitted[key]++
			}
			if l.Keys() > limit.MaxKeys {
				t.Fatalf("%d keys are kept, more than %d", l.Keys(), limit.MaxKeys)
			}
		}
		most := limit.Rate*now.Sub(start).Seconds() + float64(limit.Burst)
		for key, n := range admitted {
			if float64(n) > most+1e-6 {
				t.Fatalf("key %s passed %d requests, more than %.2f", key, n, most)
			}
		}
	})
}

// TestCrowdGivesWay: what a crowd held up goes on when it is gone, and quiet keys make room.
func TestCrowdGivesWay(t *testing.T) {
	l := limiter(t, quota.Limit{Name: "q", Rate: 1, Burst: 1, MaxKeys: 2})
	take := func(key string, at time.Duration) bool { return l.Take(quota.Key{A: key}, start.Add(at)).Allowed }
	if !take("a", 0) || !take("b", 0) || !take("c", 0) {
		t.Fatal("a first request is refused")
	}
	if take("d", 0) {
		t.Error("the crowd passed more than one key may")
	}
	if !take("d", 2*time.Second) || !take("c", 2*time.Second) {
		t.Error("full buckets made no room")
	}
}

func TestUpdateFillsNothing(t *testing.T) {
	l := limiter(t, quota.Limit{Name: "q", Rate: 1, Burst: 2})
	for range 2 {
		l.Take(quota.Key{}, start)
	}
	if err := l.Update(quota.Limit{Name: "q", Rate: 5, Burst: 50}, start); err != nil {
		t.Fatal(err)
	}
	if l.Take(quota.Key{}, start).Allowed {
		t.Error("a new limit filled the bucket")
	}
	if !l.Take(quota.Key{}, start.Add(time.Second/5)).Allowed {
		t.Error("the new rate is not in force")
	}
	if l.Update(quota.Limit{Rate: -1}, start) == nil {
		t.Error("a bad limit is taken")
	}
	if got := l.Limit().Rate; got != 5 {
		t.Errorf("after a bad limit the rate is %v", got)
	}
	// A lease of the old rate is void.
	shared := quota.Limit{Name: "q", Rate: 100, Shared: true, Replicas: 4}
	l = limiter(t, shared)
	l.Take(quota.Key{}, start)
	l.Apply([]quota.Share{{Bucket: l.Demands(start)[0].Bucket, Rate: 90}}, time.Second, start, start)
	shared.Rate = 8
	if err := l.Update(shared, start); err != nil {
		t.Fatal(err)
	}
	if got := l.Rate(quota.Key{}, start); got != 2 {
		t.Errorf("under a new rate of 8 for 4 copies one has %v", got)
	}
}

func TestFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		demands := rapid.SliceOfN(rapid.Float64Range(0, 100), 1, 20).Draw(t, "demands")
		rate := rapid.Float64Range(0, 500).Draw(t, "rate")
		shares := quota.Fair(demands, rate)
		total, wanted := 0.0, 0.0
		for k, s := range shares {
			total += s
			wanted += demands[k]
			for n, o := range shares {
				if s < demands[k]-1e-6 && o > s+1e-6 {
					t.Fatalf("%v of %v: %d has %v of %v, while %d has %v", rate, demands, k, s, demands[k], n, o)
				}
			}
		}
		if math.Abs(total-rate) > 1e-6*(1+rate) {
			t.Fatalf("%v of %v are given out", total, rate)
		}
	})
}

func TestShares(t *testing.T) {
	limit := quota.Limit{Name: "q", Rate: 100, Burst: 40, Shared: true, Replicas: 4}
	limits := map[string]quota.Limit{"q": limit}
	d := quota.NewDivider(0, start)
	if err := d.Configure(limits, start); err != nil {
		t.Fatal(err)
	}
	now := start
	if _, _, ok := d.Lease("q", "a", nil, now); ok {
		t.Fatal("a new divider leases while old leases may be held")
	}
	ask := func(demands ...float64) (shares []float64) {
		now = now.Add(time.Second)
		for k, rate := range demands {
			var want []quota.Demand
			if rate > 0 {
				want = []quota.Demand{{Bucket: "x", Rate: rate}}
			}
			got, ttl, ok := d.Lease("q", string(rune('a'+k)), want, now)
			if ok && (ttl != quota.DefaultTTL || len(got) != len(want)) {
				t.Fatalf("shares %v for %v, for %v", got, want, ttl)
			}
			for _, s := range got {
				shares = append(shares, s.Rate)
			}
		}
		return shares
	}
	for range 12 {
		ask(500, 0, 0, 0)
	}
	if got := ask(500, 0, 0, 0)[0]; math.Abs(got-92.5) > 1e-6 { // a tenth of 25 for each of the three others
		t.Errorf("the only one that is asked has %v, want 92.5", got)
	}
	for range 12 {
		ask(500, 500, 8, 0)
	}
	got := ask(500, 500, 8, 0)
	if math.Abs(got[0]-got[1]) > 1e-6 || math.Abs(got[2]-10) > 1e-6 || math.Abs(got[0]+got[1]+got[2]-97.5) > 1e-6 {
		t.Errorf("shares %v: want 10 for the one that is asked 8, the rest in halves, 97.5 in all", got)
	}
	// What is no limit, and no copy, gets nothing.
	if _, _, ok := d.Lease("other", "a", nil, now); ok {
		t.Error("a lease of a limit that is none")
	}
	if shares, _, _ := d.Lease("q", "a", []quota.Demand{{Bucket: "x", Rate: math.NaN()}, {Bucket: string(make([]byte, 65)), Rate: 1}}, now); len(shares) > 0 {
		t.Errorf("shares %v of what can't be meant", shares)
	}
}

// world is copies of a service, a divider and the calls between them, which may be lost.
type world struct {
	limit    quota.Limit
	divider  *quota.Divider
	copies   []*quota.Limiter
	now      time.Time
	key      quota.Key
	admitted int
}

func (w *world) lease(k int, lost int) {
	asked := w.now
	demands := w.copies[k].Demands(w.now)
	if lost == 1 { // the request
		return
	}
	shares, ttl, ok := w.divider.Lease("q", fmt.Sprint(k), demands, w.now)
	if lost == 2 || !ok { // the answer
		return
	}
	w.copies[k].Apply(shares, ttl, asked, w.now)
}

func draw(t *rapid.T) *world {
	w := &world{now: start, key: quota.Key{A: "caller"}}
	w.limit = quota.Limit{
		Name: "q", Rate: rapid.Float64Range(1, 200).Draw(t, "rate"), Burst: rapid.IntRange(1, 100).Draw(t, "burst"), Shared: true,
		Replicas: rapid.IntRange(1, 6).Draw(t, "replicas"),
	}
	w.divider = quota.NewDivider(0, start)
	if err := w.divider.Configure(map[string]quota.Limit{"q": w.limit}, start); err != nil {
		t.Fatal(err)
	}
	for range w.limit.Replicas {
		w.copies = append(w.copies, limiter(t, w.limit))
	}
	return w
}

// burst is what all copies may let through at once: one request each, where they are more than the burst.
func (w *world) burst() float64 { return float64(max(w.limit.Burst, w.limit.Replicas)) }

// TestSharesNeverExceed: without faults the rates in force in all copies are never more than the rate, and what passes never more than
// rate × time + burst; whatever is asked of whom, and whenever they ask.
func TestSharesNeverExceed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := draw(t)
		next := make([]time.Time, len(w.copies))
		for k := range next {
			next[k] = start.Add(time.Duration(rapid.IntRange(0, 1000).Draw(t, "phase")) * time.Millisecond)
		}
		for range rapid.IntRange(20, 150).Draw(t, "steps") {
			hot := rapid.IntRange(0, len(w.copies)-1).Draw(t, "hot")
			for range rapid.IntRange(0, 100).Draw(t, "requests") {
				if w.copies[hot].Take(w.key, w.now).Allowed {
					w.admitted++
				}
			}
			w.now = w.now.Add(time.Duration(rapid.IntRange(1, 400).Draw(t, "pause")) * time.Millisecond)
			for k := range w.copies {
				if !w.now.Before(next[k]) {
					w.lease(k, 0)
					next[k] = w.now.Add(time.Second)
				}
			}
			total := 0.0
			for _, c := range w.copies {
				total += c.Rate(w.key, w.now)
			}
			if total > w.limit.Rate*(1+1e-9) {
				t.Fatalf("at %v copies fill at %v in all, more than %v", w.now.Sub(start), total, w.limit.Rate)
			}
			if most := w.limit.Rate*w.now.Sub(start).Seconds() + w.burst(); float64(w.admitted) > most+1e-6 {
				t.Fatalf("at %v %d have passed, more than %v", w.now.Sub(start), w.admitted, most)
			}
		}
	})
}

// TestFaultsCostWhatIsSaid: lost questions and answers, copies and dividers that start anew cost what Divider says, and no more.
func TestFaultsCostWhatIsSaid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := draw(t)
		even := w.limit.Rate / float64(w.limit.Replicas)
		most := w.burst()
		cut := make([]bool, len(w.copies))
		spare := map[int]float64{} // for how many seconds a copy may have an even share beside the leases of others
		for range rapid.IntRange(20, 120).Draw(t, "steps") {
			at := rapid.IntRange(0, len(w.copies)-1).Draw(t, "copy")
			switch rapid.IntRange(0, 12).Draw(t, "fault") {
			case 0, 1:
				cut[at] = !cut[at]
			case 2:
				w.copies[at] = limiter(t, w.limit)
				most += max(1, float64(w.limit.Burst)/float64(w.limit.Replicas))
				spare[at] += 2 * quota.DefaultTTL.Seconds()
			case 3:
				w.divider = quota.NewDivider(0, w.now)
				_ = w.divider.Configure(map[string]quota.Limit{"q": w.limit}, w.now)
				for k := range w.copies {
					spare[k] += 2 * quota.DefaultTTL.Seconds()
				}
			}
			for range rapid.IntRange(0, 200).Draw(t, "requests") {
				if w.copies[at].Take(w.key, w.now).Allowed {
					w.admitted++
				}
			}
			w.now = w.now.Add(time.Second)
			for k := range w.copies {
				lost := 0
				if cut[k] {
					lost = rapid.IntRange(1, 2).Draw(t, "lost")
					spare[k] += 1 + quota.DefaultTTL.Seconds() // it may be taken to hear what it does not
				}
				w.lease(k, lost)
			}
			allowed := most + w.limit.Rate*w.now.Sub(start).Seconds()
			for _, s := range spare {
				allowed += s * even
			}
			if float64(w.admitted) > allowed+1e-6 {
				t.Fatalf("at %v %d have passed, more than %v", w.now.Sub(start), w.admitted, allowed)
			}
		}
	})
}

// TestSkewIsServed: that nothing exceeds is worth little if nothing passes.
func TestSkewIsServed(t *testing.T) {
	w := &world{now: start, key: quota.Key{A: "caller"}, limit: quota.Limit{Name: "q", Rate: 100, Burst: 20, Shared: true, Replicas: 5}}
	w.divider = quota.NewDivider(0, start)
	if err := w.divider.Configure(map[string]quota.Limit{"q": w.limit}, start); err != nil {
		t.Fatal(err)
	}
	for range w.limit.Replicas {
		w.copies = append(w.copies, limiter(t, w.limit))
	}
	run := func(seconds int) int {
		before := w.admitted
		for range seconds * 100 {
			for range 2 { // twice the rate, all at one copy
				if w.copies[0].Take(w.key, w.now).Allowed {
					w.admitted++
				}
			}
			w.now = w.now.Add(10 * time.Millisecond)
			if w.now.Sub(start)%time.Second == 0 {
				for k := range w.copies {
					w.lease(k, 0)
				}
			}
		}
		return w.admitted - before
	}
	run(12)
	if got := run(10); got < 900 {
		t.Errorf("of 2,000 at one copy of five %d passed in ten seconds: want 900 of the 1,000 that may", got)
	}
	// Control goes: an even share is left.
	w.divider = quota.NewDivider(0, w.now.Add(time.Hour))
	run(10)
	if got := run(10); got < 195 || got > 205 {
		t.Errorf("without control %d passed in ten seconds: want a fifth of 1,000", got)
	}
}

// TestEmptyBucketsFill: one request every twenty seconds passes where one every ten may, though no lease lasts that long.
func TestEmptyBucketsFill(t *testing.T) {
	w := &world{now: start, key: quota.Key{A: "caller"}, limit: quota.Limit{Name: "q", Rate: 0.1, Burst: 1, Shared: true, Replicas: 5}}
	w.divider = quota.NewDivider(0, start)
	if err := w.divider.Configure(map[string]quota.Limit{"q": w.limit}, start); err != nil {
		t.Fatal(err)
	}
	for range w.limit.Replicas {
		w.copies = append(w.copies, limiter(t, w.limit))
	}
	for k := range 240 {
		if k%20 == 0 && !w.copies[1].Take(w.key, w.now).Allowed {
			t.Errorf("second %d: a caller far below its limit is refused", k)
		}
		w.now = w.now.Add(time.Second)
		for k := range w.copies {
			w.lease(k, 0)
		}
	}
}

// TestAnswersMayBeLost: what a copy was told counts when it has asked again, and what it had counts until it ends.
func TestAnswersMayBeLost(t *testing.T) {
	d := quota.NewDivider(0, start)
	if err := d.Configure(map[string]quota.Limit{"q": {Name: "q", Rate: 100, Shared: true, Replicas: 2}}, start); err != nil {
		t.Fatal(err)
	}
	now := start.Add(quota.DefaultTTL)
	ask := func(replica string, rate float64) float64 {
		now = now.Add(100 * time.Millisecond)
		shares, _, _ := d.Lease("q", replica, []quota.Demand{{Bucket: "x", Rate: rate}}, now)
		return shares[0].Rate
	}
	if got := ask("a", 500); got != 50 {
		t.Errorf("while nothing is heard of the other one has %v, want 50", got)
	}
	ask("a", 500)
	if got := ask("b", 0); got > 10 {
		t.Errorf("one that wants nothing has %v", got)
	}
	if got := ask("a", 500); got != 50 {
		t.Errorf("the other has asked once, and may not have heard the answer: %v, want 50", got)
	}
	ask("b", 0)
	now = now.Add(quota.DefaultTTL - 250*time.Millisecond)
	ask("b", 0)
	now = now.Add(250 * time.Millisecond)
	if got := ask("a", 500); got < 80 {
		t.Errorf("the other hears and wants nothing: %v, want nearly all", got)
	}
	ask("a", 1) // and the answer is lost
	if got := ask("b", 500); got > 20 {
		t.Errorf("the other may still have nearly all: %v, want what is left", got)
	}
}

func TestTakeAllocatesNothing(t *testing.T) {
	l := limiter(t, quota.Limit{Name: "q", Rate: 1000, Shared: true, Replicas: 3})
	key, now := quota.Key{A: "spiffe://eu.test/ns/shop/sa/web"}, start
	if n := testing.AllocsPerRun(1000, func() { now = now.Add(time.Microsecond); l.Take(key, now) }); n > 0 {
		t.Errorf("a request of a known key allocates %v times", n)
	}
}

func TestDemandsAreBounded(t *testing.T) {
	l := limiter(t, quota.Limit{Name: "q", Rate: 1, Shared: true, Replicas: 3})
	for k := range 2 * quota.MaxDemands {
		for range 1 + k%7 {
			l.Take(quota.Key{A: fmt.Sprint(k)}, start)
		}
	}
	demands := l.Demands(start)
	if len(demands) != quota.MaxDemands {
		t.Fatalf("%d demands, want %d", len(demands), quota.MaxDemands)
	}
	if !slices.IsSortedFunc(demands, func(a, b quota.Demand) int {
		if a.Rate > b.Rate {
			return -1
		}
		return 0
	}) {
		t.Error("those that are asked most are not first")
	}
}

func BenchmarkTake(b *testing.B) {
	for _, keys := range []int{1, 1000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			l := limiter(b, quota.Limit{Name: "q", Rate: 1e5, Shared: true, Replicas: 3})
			all := make([]quota.Key, keys)
			for k := range all {
				all[k] = quota.Key{A: fmt.Sprintf("spiffe://eu.test/ns/shop/sa/web-%d", k)}
			}
			now := start
			b.ReportAllocs()
			for k := 0; b.Loop(); k++ {
				now = now.Add(time.Microsecond)
				l.Take(all[k%keys], now)
			}
		})
	}
}

// TestRatesOverTime: each second is counted at the rate that was in force in it.
func TestRatesOverTime(t *testing.T) {
	// Of 2 a second for two copies, an even share is 1, and what is left without a lease 0.1.
	limit := quota.Limit{Name: "q", Rate: 2, Burst: 20, Shared: true, Replicas: 2}
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	var l *quota.Limiter
	var key quota.Key
	empty := func() (bucket string) {
		l = limiter(t, limit)
		for l.Take(key, start).Allowed {
		}
		return l.Demands(start)[0].Bucket
	}
	passes := func(now time.Time) (n int) {
		for l.Take(key, now).Allowed {
			n++
		}
		return n
	}
	empty()
	l.Apply(nil, time.Second, at(5), at(5))
	if got := passes(at(5)); got != 5 {
		t.Errorf("five seconds without control: %d, want 5 of an even share", got)
	}
	bucket := empty()
	l.Apply(nil, 3*time.Second, start, start)
	l.Apply([]quota.Share{{Bucket: bucket, Rate: 2}}, 3*time.Second, at(2), at(2))
	if got := passes(at(2)); got != 0 {
		t.Errorf("a lease counts %d before it is there", got)
	}
	if got := passes(at(4)); got != 4 {
		t.Errorf("two seconds of a lease of 2: %d", got)
	}
	bucket = empty()
	l.Apply([]quota.Share{{Bucket: bucket, Rate: 2}}, 3*time.Second, start, start)
	if got := passes(at(5)); got != 8 {
		t.Errorf("three seconds of a lease of 2, and two of an even share: %d, want 8", got)
	}
	// What came late, what is too much, and what can't be meant is no lease.
	bucket = empty()
	l.Apply([]quota.Share{{Bucket: bucket, Rate: 0.5}}, 3*time.Second, at(1), at(1))
	for _, s := range []quota.Share{{Bucket: bucket, Rate: 2}, {Bucket: "other", Rate: 2}} {
		l.Apply([]quota.Share{s}, 3*time.Second, start, at(1))
	}
	for _, rate := range []float64{2.1, -1, math.NaN(), math.Inf(1)} {
		l.Apply([]quota.Share{{Bucket: bucket, Rate: rate}}, 3*time.Second, at(1.5), at(1.5))
	}
	l.Apply([]quota.Share{{Bucket: bucket, Rate: 2}}, time.Hour, at(1.5), at(1.5))
	l.Apply([]quota.Share{{Bucket: bucket, Rate: 2}}, -1, at(1.5), at(1.5))
	l.Apply([]quota.Share{{Bucket: bucket, Rate: 2}}, time.Second, start, at(1.5))
	if got := l.Rate(key, at(2)); got != 0.5 {
		t.Errorf("the rate is %v, want the 0.5 that was leased", got)
	}
	// A smaller burst holds at once, for what was saved too.
	l = limiter(t, quota.Limit{Name: "q", Rate: 1, Burst: 50})
	l.Take(key, start)
	if err := l.Update(quota.Limit{Name: "q", Rate: 1, Burst: 2}, start); err != nil {
		t.Fatal(err)
	}
	if got := passes(start); got != 2 {
		t.Errorf("after the burst was set to 2, %d pass at once", got)
	}
}

// TestDividerIsBounded: who asks without end makes it remember no more, and lose nothing that counts; who is gone is forgotten.
func TestDividerIsBounded(t *testing.T) {
	limit := quota.Limit{Name: "q", Rate: 100, Shared: true, Replicas: 2}
	d := quota.NewDivider(0, start)
	if err := d.Configure(map[string]quota.Limit{"q": limit}, start); err != nil {
		t.Fatal(err)
	}
	now := start.Add(quota.DefaultTTL)
	ask := func(replica string, rate float64) (share float64, ok bool) {
		now = now.Add(10 * time.Millisecond)
		shares, _, ok := d.Lease("q", replica, []quota.Demand{{Bucket: "x", Rate: rate}}, now)
		if !ok {
			return 0, false
		}
		return shares[0].Rate, true
	}
	most := 0.0
	for range 1000 {
		most, _ = ask("a", 500)
		ask("b", 0)
	}
	if most < 90 {
		t.Fatalf("the only one that is asked has %v", most)
	}
	for rate := 200.0; rate > 1; rate *= 0.9 {
		ask("a", rate) // each less than before: none of them can be forgotten for the next
	}
	if got, _ := ask("b", 500); got > 100-most+1e-6 {
		t.Errorf("one may still have %v, and the other has %v", most, got)
	}
	// Another rate: what was leased before has to end first.
	limit.Rate = 10
	if err := d.Configure(map[string]quota.Limit{"q": limit}, now); err != nil {
		t.Fatal(err)
	}
	if got, ok := ask("b", 500); ok {
		t.Errorf("a lease of %v while there are some of another rate", got)
	}
	now = now.Add(quota.DefaultTTL)
	if _, ok := ask("b", 500); !ok {
		t.Error("no lease")
	}
	for k := range 1000 {
		ask(fmt.Sprint(k), 1)
		now = now.Add(quota.DefaultTTL / 10)
	}
	if n := d.Copies("q"); n > 50 {
		t.Errorf("%d copies are remembered of which most are gone", n)
	}
	if err := d.Configure(map[string]quota.Limit{"q": {Rate: -1}}, now); err == nil {
		t.Error("a bad limit is taken")
	}
	if _, ok := ask("b", 1); !ok {
		t.Error("a bad limit took the good one away")
	}
}

// BenchmarkLease is what one question costs control, of a copy that names so many buckets, each of which so many copies are asked for.
func BenchmarkLease(b *testing.B) {
	for _, c := range []struct{ copies, buckets int }{{3, 10}, {10, 100}, {100, 1000}} {
		b.Run(fmt.Sprintf("copies=%d/buckets=%d", c.copies, c.buckets), func(b *testing.B) {
			d := quota.NewDivider(0, start)
			if err := d.Configure(map[string]quota.Limit{"q": {Name: "q", Rate: 1000, Shared: true, Replicas: c.copies}}, start); err != nil {
				b.Fatal(err)
			}
			now := start.Add(quota.DefaultTTL)
			demands := make([]quota.Demand, c.buckets)
			for k := range demands {
				demands[k] = quota.Demand{Bucket: fmt.Sprint(k), Rate: float64(k % 50)}
			}
			for k := 0; b.Loop(); k++ {
				now = now.Add(time.Second / time.Duration(c.copies))
				d.Lease("q", fmt.Sprint(k%c.copies), demands, now)
			}
		})
	}
}

// TestLimitsSpareEachOther: neither a copy that names buckets without end nor a rate that is changed without end keeps another limit from
// being divided.
func TestLimitsSpareEachOther(t *testing.T) {
	d := quota.NewDivider(0, start)
	now := start
	configure := func(rate float64) {
		t.Helper()
		if err := d.Configure(map[string]quota.Limit{
			"a/q/each": {Rate: 100, Shared: true, Replicas: 2}, "b/q/each": {Rate: rate, Shared: true},
		}, now); err != nil {
			t.Fatal(err)
		}
	}
	configure(1)
	now = now.Add(quota.DefaultTTL)
	for k := range 2 * quota.MaxBuckets / quota.MaxDemands {
		var many []quota.Demand
		for i := range quota.MaxDemands {
			many = append(many, quota.Demand{Bucket: fmt.Sprint(k, "-", i), Rate: 1})
		}
		d.Lease("b/q/each", "b", many, now)
	}
	configure(2)
	shares, _, ok := d.Lease("a/q/each", "a", []quota.Demand{{Bucket: "x", Rate: 90}}, now)
	if !ok || len(shares) != 1 {
		t.Errorf("%v %v", shares, ok)
	}
	if _, _, ok := d.Lease("b/q/each", "b", nil, now); ok {
		t.Error("a lease while there are some of another rate")
	}
}
