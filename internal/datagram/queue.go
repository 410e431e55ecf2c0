package datagram

import "sync"

// Queue holds datagrams for one that sends them on. When it is full the oldest makes room: a datagram that is late is worth less than one
// that comes now. Make one with NewQueue.
type Queue struct {
	most, bytes int
	budget      *Budget
	owner       string        // as which it takes of budget
	more        chan struct{} // capacity 1: something is in it

	mu      sync.Mutex
	waiting [][]byte // guarded by mu; from head on
	head    int      // guarded by mu
	held    int      // guarded by mu; bytes
	dropped uint64   // guarded by mu
	closed  bool     // guarded by mu
}

// NewQueue returns a Queue of at most so many datagrams and so many bytes in all; budget, which may be nil, bounds several together. The owner is
// whoever can make it fill, by not taking what is in it.
func NewQueue(datagrams, bytes int, budget *Budget, owner string) *Queue {
	return &Queue{most: datagrams, bytes: bytes, budget: budget, owner: owner, more: make(chan struct{}, 1)}
}

// Put queues p, which is the Queue's from then on, and returns how many datagrams were dropped for it: p itself where there is no room even
// without the others, or the Queue is closed.
func (q *Queue) Put(p []byte) (dropped int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0
	}
	for len(q.waiting)-q.head >= q.most || q.held+len(p) > q.bytes && len(q.waiting) > q.head {
		q.pop()
		dropped++
	}
	for !q.budget.take(q.owner, len(p)) {
		if len(q.waiting) == q.head { // the others hold all that there is for this one
			dropped++
			q.dropped += uint64(dropped) //nolint:gosec // G115: a count
			return dropped
		}
		q.pop()
		dropped++
	}
	q.waiting = append(q.waiting, p)
	q.held += len(p)
	q.dropped += uint64(dropped) //nolint:gosec // G115: a count
	q.wake()
	return dropped
}

// pop takes the oldest out. mu is held, and there is one.
func (q *Queue) pop() []byte {
	p := q.waiting[q.head]
	q.waiting[q.head] = nil
	q.head++
	q.held -= len(p)
	q.budget.give(q.owner, len(p))
	switch {
	case q.head == len(q.waiting):
		q.waiting, q.head = q.waiting[:0], 0
	case q.head >= q.most: // append would go on for ever
		n := copy(q.waiting, q.waiting[q.head:])
		clear(q.waiting[n:])
		q.waiting, q.head = q.waiting[:n], 0
	}
	return p
}

func (q *Queue) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// Take returns the oldest datagram, and waits for one; ok is false once the Queue is closed. One goroutine takes.
func (q *Queue) Take() (p []byte, ok bool) {
	for {
		q.mu.Lock()
		switch {
		case q.closed:
			q.mu.Unlock()
			return nil, false
		case len(q.waiting) > q.head:
			p = q.pop()
			q.mu.Unlock()
			return p, true
		}
		q.mu.Unlock()
		<-q.more
	}
}

// TakeNow is Take without waiting: ok is false when there is none.
func (q *Queue) TakeNow() (p []byte, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || len(q.waiting) == q.head {
		return nil, false
	}
	return q.pop(), true
}

// Dropped returns how many datagrams made room for others.
func (q *Queue) Dropped() uint64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dropped
}

// Close drops what is in it and ends Take. What comes later is dropped.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.budget.give(q.owner, q.held)
	q.waiting, q.head, q.held = nil, 0, 0
	q.wake()
}

// Budget bounds what several Queues hold together. An owner may have as much as it leaves for others: the first half of it, the next half of
// the rest, and so on. A nil one bounds nothing.
type Budget struct {
	mu   sync.Mutex
	left int            // guarded by mu; bytes
	held map[string]int // guarded by mu; bytes, by owner
}

// NewBudget returns one of so many bytes.
func NewBudget(bytes int) *Budget { return &Budget{left: bytes, held: make(map[string]int)} }

func (b *Budget) take(owner string, n int) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held[owner]+n > b.left-n {
		return false
	}
	b.left -= n
	b.held[owner] += n
	return true
}

func (b *Budget) give(owner string, n int) {
	if b == nil || n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
	if b.held[owner] -= n; b.held[owner] == 0 {
		delete(b.held, owner)
	}
}
