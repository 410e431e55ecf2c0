package balance

import (
	"slices"
	"testing"
	"time"
)

// waiter notes when it was told.
type waiter struct {
	Wait
	told    int
	since   time.Time
	certain bool
}

func (w *waiter) Late(since time.Time, certain bool) {
	w.told, w.since, w.certain = w.told+1, since, certain
}

func tell(late []Late) {
	for _, l := range late {
		l.Owner.Late(l.Since, l.Certain)
	}
}

// waiting is a copy that takes 80 ms for an answer, and requests that wait for one.
type waiting struct {
	*testing.T
	p   Pace[string]
	now time.Time
}

func newWaiting(t *testing.T) *waiting {
	t.Helper()
	w := &waiting{T: t, now: time.Unix(1e9, 0)}
	for range 100 {
		w.p.Heard(w.now, "us", 80*time.Millisecond)
	}
	return w
}

// after moves time on.
func (w *waiting) after(ms int) { w.now = w.now.Add(time.Duration(ms) * time.Millisecond) }

func (w *waiting) begin() (*waiter, time.Duration) {
	r := new(waiter)
	r.Owner = r
	look, late, isLate := w.p.Begin(w.now, "us", &r.Wait)
	if isLate {
		tell([]Late{late})
	}
	return r, look
}

func (w *waiting) look(wantTold int, wantAgain time.Duration) {
	w.Helper()
	late, again := w.p.Look(w.now, "us")
	tell(late)
	if len(late) != wantTold || again != wantAgain {
		w.Errorf("%d are late, and the next look after %s; want %d, %s", len(late), again, wantTold, wantAgain)
	}
}

// TestWaitSilence: a copy falls silent. Whoever waits for it hears so when the answer is overdue; whoever comes then need not wait.
func TestWaitSilence(t *testing.T) {
	w := newWaiting(t)
	first, look := w.begin()
	if look < 160*time.Millisecond || look > 162*time.Millisecond {
		t.Fatalf("look after %s", look)
	}
	w.after(40)
	second, again := w.begin()
	if again != 0 {
		t.Errorf("looked at twice: after %s", again)
	}
	w.now = w.now.Add(look - 40*time.Millisecond)
	w.look(1, 40*time.Millisecond)
	if first.told != 1 || first.certain || second.told != 0 || !w.p.Suspect("us") {
		t.Errorf("first told %d times, second %d", first.told, second.told)
	}
	var more []*waiter
	for range 3 {
		r, look := w.begin()
		if r.told != 1 || look != 0 || !r.since.Equal(first.since) {
			t.Errorf("told %d times, since %s", r.told, r.since)
		}
		more = append(more, r)
	}
	if more[1].certain || !more[2].certain {
		t.Error("the fourth that waits in vain is certain")
	}
	w.p.Alive(w.now, "us") // after all
	w.after(40)
	w.look(0, 40*time.Millisecond) // it has to be silent for as long as an answer takes
	if r, _ := w.begin(); r.told != 0 || w.p.Suspect("us") {
		t.Error("it was heard, and is suspect still")
	}
}

// TestWaitMany: once several wait in vain, all that wait hear so, however lately they began.
func TestWaitMany(t *testing.T) {
	w := newWaiting(t)
	_, look := w.begin()
	w.after(10)
	second, _ := w.begin()
	w.now = w.now.Add(look - 20*time.Millisecond)
	late, _ := w.begin()
	w.after(10)
	w.look(1, 10*time.Millisecond) // one may be chance
	if _, again := w.begin(); again != 0 {
		t.Error("looked at twice")
	}
	w.after(10)
	w.look(2, 0)
	if second.told != 1 || late.told != 1 || second.certain || !late.certain {
		t.Errorf("told %d and %d times", second.told, late.told)
	}
	if next, _ := w.begin(); !next.certain {
		t.Error("four are no proof")
	}
}

// TestWaitHeard: what is slow at a copy that answers others is not late.
func TestWaitHeard(t *testing.T) {
	w := newWaiting(t)
	slow, _ := w.begin()
	for range 40 {
		w.after(50)
		w.p.Alive(w.now, "us")
		if late, again := w.p.Look(w.now, "us"); len(late) > 0 || again == 0 {
			t.Fatalf("late: %v, look after %s", late, again)
		}
	}
	w.p.End(&slow.Wait)
	w.look(0, 0)
	if _, look := w.begin(); look == 0 {
		t.Error("nobody looks")
	}
}

// TestWaitLeave: when a copy is given up, all that wait for it hear so, once more those that had heard before.
func TestWaitLeave(t *testing.T) {
	w := newWaiting(t)
	late, look := w.begin()
	w.now = w.now.Add(look)
	w.look(1, 0)
	w.p.Alive(w.now, "us")
	w.after(1)
	waits, _ := w.begin()
	ended, _ := w.begin()
	w.p.End(&ended.Wait)
	tell(w.p.Leave(w.now, "us"))
	if late.told != 2 || waits.told != 1 || ended.told != 0 || !late.certain || !waits.certain {
		t.Errorf("told %d, %d and %d times", late.told, waits.told, ended.told)
	}
	tell(w.p.Leave(w.now, "us"))
	w.p.End(&late.Wait)
	w.p.End(&waits.Wait)
	w.p.End(new(Wait)) // that never began
	if late.told != 2 {
		t.Error("told again")
	}
}

func TestWaits(t *testing.T) {
	var l waits
	all := make([]Wait, 5)
	for i := range all {
		l.add(&all[i])
	}
	for _, i := range []int{2, 0, 4} {
		l.remove(&all[i])
	}
	var got []*Wait
	for w := l.first; w != nil; w = w.next {
		got = append(got, w)
	}
	if !slices.Equal(got, []*Wait{&all[1], &all[3]}) || l.last != &all[3] || all[3].prev != &all[1] {
		t.Errorf("got %v", got)
	}
}

func BenchmarkWait(b *testing.B) {
	var p Pace[string]
	var w Wait
	for b.Loop() {
		p.Begin(start, "a", &w)
		p.End(&w)
		p.Heard(start, "a", time.Millisecond)
	}
}

// TestWaitAnew: a copy that was silent is asked again. That wait is late by its own time alone, and not before that is long enough to count.
func TestWaitAnew(t *testing.T) {
	w := newWaiting(t)
	w.p.Heard(w.now, "near", time.Millisecond) // what it takes is far less than what counts
	silent := new(waiter)
	silent.Owner = silent
	w.p.Begin(w.now, "near", &silent.Wait)
	w.after(200)
	if late, _ := w.p.Look(w.now, "near"); len(late) != 1 || !w.p.Suspect("near") {
		t.Fatalf("%d late, and suspect: %t", len(late), w.p.Suspect("near"))
	}
	w.after(1000)
	began, r := w.now, new(waiter)
	r.Owner = r
	w.p.BeginAnew(w.now, "near", &r.Wait)
	w.after(100)
	late, again := w.p.Look(w.now, "near")
	if len(late) != 0 || again != leastSilence-100*time.Millisecond || w.p.Suspect("near") {
		t.Errorf("after 100 ms %d are late, and the next look is due in %s", len(late), again)
	}
	w.after(50)
	if late, _ = w.p.Look(w.now, "near"); len(late) != 1 || !late[0].Since.Equal(began) || !w.p.Silent(w.now, "near", late[0].Since) {
		t.Errorf("after 150 ms: %+v", late)
	}
}
