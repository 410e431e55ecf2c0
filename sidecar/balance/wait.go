package balance

import "time"

// Wait is a request's wait for the answer of a copy. It is part of what the request is, so that waiting costs no memory; it belongs to a Pace from
// Begin to End.
type Wait struct {
	// Owner is told that the answer is overdue.
	Owner Waiter

	began      time.Time     // guarded by of.mu, as all that follows
	least      time.Duration // the answer is not overdue before
	of         *pace
	in         *waits // the list that it is in; nil: none
	prev, next *Wait
}

// Waiter is who waits.
type Waiter interface {
	// Late says that the answer is overdue, and that nothing came from the copy since then; certain: others found the same, or the copy was given up.
	// It is called by whoever looks, and at most twice.
	Late(since time.Time, certain bool)
}

// Late is a wait that is overdue. Tell its owner.
type Late struct {
	Owner   Waiter
	Since   time.Time
	Certain bool
}

// certainAfter is how many answers have to be overdue since a copy was last heard for it to be held silent beyond doubt.
const certainAfter = 3

// Begin begins a wait for k. look is not 0 when nobody would look at it in time: the caller then calls Look after that. late is true when the copy
// is silent as it is: others wait for it in vain, and this one need not.
func (p *Pace[K]) Begin(now time.Time, k K, w *Wait) (look time.Duration, late Late, isLate bool) {
	c := p.of(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	w.began, w.least, w.of = now, 0, c
	if c.silent() {
		c.overdue++
		c.late.add(w)
		return 0, Late{w.Owner, c.since, c.overdue > certainAfter}, true
	}
	return c.wait(w), Late{}, false
}

// BeginAnew begins the wait of a request that finds out whether k is still silent. That it was before counts for nothing: who is asked after a while
// gets the time that its answers take to give one, and silence the time that it has to last to count against it.
func (p *Pace[K]) BeginAnew(now time.Time, k K, w *Wait) (look time.Duration) {
	c := p.of(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	w.began, w.least, w.of = now, leastSilence, c
	c.overdue = 0
	return c.wait(w)
}

// wait adds a wait, and returns when somebody has to look at it; 0: somebody will. c.mu is held.
func (c *pace) wait(w *Wait) (look time.Duration) {
	c.waiting.add(w)
	if c.looking {
		return 0
	}
	c.looking = true
	return c.patience()
}

// End ends a wait.
func (p *Pace[K]) End(w *Wait) {
	if w.of == nil {
		return
	}
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if w.in != nil {
		w.in.remove(w)
	}
}

// Look returns the waits for k that are overdue now, and after which time to look again; 0: there is nothing to look at.
func (p *Pace[K]) Look(now time.Time, k K) (late []Late, again time.Duration) {
	c := p.of(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent()
	heard := time.Unix(0, c.heard.Load())
	patience, quiet := c.patience(), c.quiet()
	for w := c.waiting.first; w != nil; w = c.waiting.first {
		due, since := w.began.Add(max(patience, w.least)), w.began
		if h := heard.Add(quiet); h.After(due) {
			due = h
		}
		if heard.After(since) {
			since = heard
		}
		// Where several wait in vain, all do: those that come now don't wait either (Begin).
		if due.After(now) && c.overdue < certainAfter {
			again = max(due.Sub(now), time.Millisecond)
			break
		}
		if c.overdue == 0 {
			c.since = since
		}
		c.overdue++
		c.waiting.remove(w)
		c.late.add(w)
		late = append(late, Late{w.Owner, since, c.overdue > certainAfter})
	}
	c.looking = again > 0
	return late, again
}

// Leave returns all that wait for k, which is given up: they need not wait any longer.
func (p *Pace[K]) Leave(now time.Time, k K) (late []Late) {
	c := p.of(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, list := range []*waits{&c.late, &c.waiting} {
		for w := list.first; w != nil; w = list.first {
			list.remove(w)
			late = append(late, Late{w.Owner, now, true})
		}
	}
	return late
}

// Suspect reports whether answers of k are overdue, and nothing came from it since.
func (p *Pace[K]) Suspect(k K) bool {
	c := p.of(k)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.silent()
}

// silent reports whether answers are overdue and nothing came since. c.mu is held.
func (c *pace) silent() bool {
	if c.overdue > 0 && c.heard.Load() > c.since.UnixNano() {
		c.overdue = 0
	}
	return c.overdue > 0
}

// waits is a list of waits, the oldest first. The zero value is empty.
type waits struct{ first, last *Wait }

func (l *waits) add(w *Wait) {
	w.in, w.prev, w.next = l, l.last, nil
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
}

func (l *waits) remove(w *Wait) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.last = w.prev
	}
	w.in, w.prev, w.next = nil, nil, nil
}
