package limit

import (
	"container/heap"
	"math/rand/v2"
	"testing"
	"time"
)

// event is something that happens at a time of the simulation.
type event struct {
	at time.Duration
	do func()
}

type agenda []event

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at < a[j].at }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(e any)        { *a = append(*a, e.(event)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

// application is one of fixed capacity, in virtual time: it works on some requests at a time, and the others wait in line, first come first served.
type application struct {
	l       Limiter
	agenda  agenda
	now     time.Duration
	workers int
	cost    func() time.Duration
	busy    int
	line    []func()
	random  *rand.Rand

	impatient, cancels bool // callers leave after their patience; what they leave behind is then not worked on, if it was still in line

	good, late, shed map[*Caller]int
}

var start = time.Unix(1e9, 0)

func newApplication(workers int, cost func() time.Duration) *application {
	return &application{workers: workers, cost: cost, random: rand.New(rand.NewPCG(1, 2)), good: map[*Caller]int{}, late: map[*Caller]int{}, shed: map[*Caller]int{}}
}

func (a *application) after(d time.Duration, do func()) { heap.Push(&a.agenda, event{a.now + d, do}) }

// request is good when it is answered within patience.
func (a *application) request(c *Caller, limited bool, patience time.Duration) {
	if limited && !a.l.Begin(c) {
		a.shed[c]++
		return
	}
	came, gone, done := a.now, false, false
	var work func()
	next := func() {
		a.busy--
		if len(a.line) > 0 {
			first := a.line[0]
			a.line = a.line[1:]
			a.busy++
			first()
		}
	}
	work = func() {
		if gone && a.cancels {
			next()
			return
		}
		a.after(a.cost(), func() {
			done = true
			if took := a.now - came; took <= patience {
				a.good[c]++
			} else {
				a.late[c]++
			}
			if limited && !gone {
				a.l.End(start.Add(a.now), c, a.now-came)
			}
			next()
		})
	}
	if a.impatient {
		a.after(patience, func() {
			if done {
				return
			}
			if gone = true; limited {
				a.l.Gone(start.Add(a.now), c, patience)
			}
		})
	}
	if a.busy < a.workers {
		a.busy++
		work()
		return
	}
	a.line = append(a.line, work)
}

// run lets callers send so many requests a second, by chance as to when, for so long.
func (a *application) run(long time.Duration, rate float64, limited bool, patience time.Duration, callers ...*Caller) {
	end := a.now + long
	var next func()
	next = func() {
		if a.now >= end {
			return
		}
		a.request(callers[a.random.IntN(len(callers))], limited, patience)
		a.after(time.Duration(a.random.ExpFloat64()/rate*float64(time.Second)), next)
	}
	next()
	for len(a.agenda) > 0 && a.agenda[0].at < end {
		e := heap.Pop(&a.agenda).(event)
		a.now = e.at
		e.do()
	}
	a.now = end
}

func fixed(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// TestGoodput: with three times as much to do as it can, an application answers in time at least four fifths of what it can at best; without a
// limit next to nothing.
func TestGoodput(t *testing.T) {
	const patience = 500 * time.Millisecond
	for _, c := range []struct {
		name               string
		workers            int
		cost               time.Duration
		impatient, cancels bool
	}{
		{"fast", 8, 2 * time.Millisecond, false, false},
		{"slow", 64, 50 * time.Millisecond, false, false},
		{"callers leave", 16, 20 * time.Millisecond, true, false},
		{"callers leave, and it works for those that are there", 16, 20 * time.Millisecond, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			capacity := float64(c.workers) / c.cost.Seconds()
			const seconds = 60
			goodput := func(limited bool) float64 {
				a, caller := newApplication(c.workers, fixed(c.cost)), new(Caller)
				a.impatient, a.cancels = c.impatient, c.cancels
				a.run(5*time.Second, capacity/2, limited, patience, caller)
				before := a.good[caller]
				a.run(seconds*time.Second, 3*capacity, limited, patience, caller)
				return float64(a.good[caller]-before) / seconds / capacity
			}
			with, without := goodput(true), goodput(false)
			t.Logf("goodput at three times the load: %.0f %% of the peak with a limit, %.0f %% without", 100*with, 100*without)
			if with < 0.8 || without > 0.2 {
				t.Errorf("goodput %.2f with a limit, %.2f without", with, without)
			}
		})
	}
}

// TestOrdinary: what isn't an overload is all taken.
func TestOrdinary(t *testing.T) {
	t.Run("nearly busy", func(t *testing.T) {
		a, c := newApplication(8, fixed(5*time.Millisecond)), new(Caller)
		a.run(2*time.Minute, 0.85*8/0.005, true, time.Second, c)
		if a.shed[c] > 0 || a.good[c] == 0 {
			t.Errorf("%d of %d shed", a.shed[c], a.good[c])
		}
	})
	t.Run("bursts", func(t *testing.T) {
		a, c := newApplication(8, fixed(5*time.Millisecond)), new(Caller)
		for range 60 {
			a.run(800*time.Millisecond, 400, true, time.Second, c)
			for range 300 { // 190 ms of work
				a.request(c, true, time.Second)
			}
			a.run(200*time.Millisecond, 400, true, time.Second, c)
		}
		if a.shed[c] > 0 {
			t.Errorf("%d of %d shed", a.shed[c], a.good[c])
		}
	})
	t.Run("some take long", func(t *testing.T) {
		var a *application
		a = newApplication(500, func() time.Duration {
			if a.random.IntN(10) == 0 {
				return 2 * time.Second
			}
			return 5 * time.Millisecond
		})
		c := new(Caller)
		a.run(time.Minute, 1000, true, time.Minute, c)
		if a.shed[c] > 0 {
			t.Errorf("%d of %d shed", a.shed[c], a.good[c])
		}
	})
	t.Run("it takes longer by itself", func(t *testing.T) {
		cost := time.Millisecond
		a, c := newApplication(10_000, func() time.Duration { return cost }), new(Caller)
		for range 3 {
			cost = time.Millisecond
			a.run(10*time.Second, 1000, true, time.Minute, c)
			cost = 300 * time.Millisecond
			a.run(2*time.Minute, 1000, true, time.Minute, c)
		}
		if a.l.Limit() != 0 || a.shed[c] > a.good[c]/200 {
			t.Errorf("limit %d, %d of %d shed", a.l.Limit(), a.shed[c], a.good[c])
		}
	})
	t.Run("callers that wait for events", func(t *testing.T) {
		for _, few := range []struct {
			patience time.Duration
			shed     float64 // at most
		}{{2 * time.Second, 0.1}, {20 * time.Second, 0}} {
			var a *application
			a = newApplication(10_000, func() time.Duration {
				if a.random.IntN(10) > 0 {
					return time.Minute
				}
				return 5 * time.Millisecond
			})
			a.impatient = true
			c := new(Caller)
			a.run(5*time.Minute, 50, true, few.patience, c)
			if asked := 5 * 60 * 50.0; a.l.Limit() != 0 || float64(a.shed[c]) > few.shed*asked {
				t.Errorf("limit %d, %d shed of those who wait for %v", a.l.Limit(), a.shed[c], few.patience)
			}
		}
	})
	t.Run("streams", func(t *testing.T) {
		var l Limiter
		c := new(Caller)
		for i := range 5000 {
			if !l.Begin(c) {
				t.Fatalf("stream %d is shed", i)
			}
		}
		for i := range 5000 {
			l.End(start.Add(time.Duration(i)*time.Second), c, 0)
		}
		if l.Limit() != 0 {
			t.Errorf("limit %d", l.Limit())
		}
	})
}

// TestRecovers: when the overload is over, so is the limit.
func TestRecovers(t *testing.T) {
	a, c := newApplication(8, fixed(5*time.Millisecond)), new(Caller)
	a.run(5*time.Second, 800, true, time.Second, c)
	a.run(20*time.Second, 4800, true, time.Second, c)
	if a.l.Limit() == 0 || a.shed[c] == 0 {
		t.Fatalf("limit %d, %d shed", a.l.Limit(), a.shed[c])
	}
	a.run(30*time.Second, 800, true, time.Second, c)
	shed := a.shed[c]
	a.run(30*time.Second, 800, true, time.Second, c)
	if a.l.Limit() != 0 || a.shed[c] != shed {
		t.Errorf("limit %d, %d shed after it was over", a.l.Limit(), a.shed[c]-shed)
	}
}

// TestFair: one caller that asks for everything leaves something for another.
func TestFair(t *testing.T) {
	a, greedy, modest := newApplication(8, fixed(5*time.Millisecond)), new(Caller), new(Caller)
	callers := []*Caller{modest}
	for range 30 {
		callers = append(callers, greedy)
	}
	a.run(5*time.Second, 800, true, time.Second, callers...)
	before := [2]int{a.good[modest], a.shed[modest]}
	a.run(time.Minute, 4800, true, time.Second, callers...)
	good, shed := a.good[modest]-before[0], a.shed[modest]-before[1]
	if good < 9*shed {
		t.Errorf("%d of a modest caller's requests were taken, and %d shed", good, shed)
	}
}

func BenchmarkLimiter(b *testing.B) {
	var l Limiter
	b.RunParallel(func(pb *testing.PB) {
		c := new(Caller)
		for pb.Next() {
			l.Begin(c)
			l.End(start, c, time.Millisecond)
		}
	})
}

// TestEase: a limit does not outlive what is known of the application, unless that answers nothing at all.
func TestEase(t *testing.T) {
	limited := func() (*application, *Caller) {
		a, c := newApplication(8, fixed(5*time.Millisecond)), new(Caller)
		a.run(5*time.Second, 8/0.005/2, true, time.Second, c)
		a.run(20*time.Second, 3*8/0.005, true, time.Second, c)
		if a.l.Limit() == 0 || a.l.Ease(start.Add(a.now)) {
			t.Fatal("there is no limit, or it was eased while there is evidence for it")
		}
		return a, c
	}
	t.Run("nothing to do", func(t *testing.T) {
		a, c := limited()
		for a.l.inFlight.Load() > 0 { // they all fail
			a.l.End(start.Add(a.now), c, 0)
		}
		if a.l.Ease(start.Add(a.now + easeAfter/2)); a.l.Limit() == 0 {
			t.Error("it was eased at once")
		}
		if !a.l.Ease(start.Add(a.now+2*easeAfter)) || a.l.Limit() != 0 {
			t.Errorf("the limit is still %d", a.l.Limit())
		}
	})
	t.Run("answers say nothing", func(t *testing.T) {
		a, _ := limited()
		last, now := a.l.Limit(), start.Add(a.now)
		for range 20 {
			for range 20 { // half a second each: more than it may, and all that are taken fail
				var taken []*Caller
				for range 2 * most {
					c := new(Caller)
					if !a.l.Begin(c) {
						a.l.Ease(now)
						break
					}
					taken = append(taken, c)
				}
				for _, c := range taken {
					a.l.End(now, c, 0)
				}
				now = now.Add(500 * time.Millisecond)
			}
			if n := a.l.Limit(); n != 0 && n < last {
				t.Fatalf("from %d to %d", last, n)
			} else if last = n; n == 0 {
				return
			}
		}
		t.Errorf("the limit is still %d", last)
	})
	t.Run("no answers", func(t *testing.T) {
		a, _ := limited()
		before := a.l.Limit()
		for a.l.Begin(new(Caller)) {
		}
		for i := range 20 {
			a.l.Ease(start.Add(a.now + time.Duration(i)*easeAfter))
		}
		if a.l.Limit() != before {
			t.Errorf("from %d to %d, though nothing is answered", before, a.l.Limit())
		}
	})
}
