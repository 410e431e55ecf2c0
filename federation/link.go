package federation

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	outboxSize     = 512 // messages that wait to be published on one bus; more are dropped, and asked for again
	inboxSize      = 256
	publishTimeout = 5 * time.Second
	resubscribe    = 200 * time.Millisecond // the first pause after a subscription that ended
	resubscribeMax = 10 * time.Second
)

// addressed is a record and where it goes.
type addressed struct {
	record  *record
	subject string
}

func (a addressed) message() Message { return Message{a.subject, a.record.raw} }

// inbound is what a link's reader tells the loop: a message, or (without one) that it hears from now on.
type inbound struct {
	link    *link
	ready   bool
	message Message
}

// link is the member on one bus: a goroutine that reads, one that writes, and what the owner loop remembers of the bus. The
// loop never waits for either of them; a reader waits for the loop, so that a flood fills the bus's own queue and nothing else.
type link struct {
	name   string
	bus    Bus
	log    *slog.Logger
	out    chan Message
	cancel context.CancelFunc

	// Of the owner loop:

	order   uint64
	planned map[Hash]planned   // answers to give, unless somebody else is faster
	seen    map[Hash]time.Time // when a record was last on this bus
	budget  *rate.Limiter      // of answers, in bytes
}

type planned struct {
	what  addressed
	at    time.Time
	order uint64 // of planning
}

func startLink(ctx context.Context, group *sync.WaitGroup, name string, bus Bus, inbox chan<- inbound, logger *slog.Logger, m *metrics) *link {
	ctx, cancel := context.WithCancel(ctx)
	k := &link{
		name: name, bus: bus, log: logger.With("bus", name), out: make(chan Message, outboxSize), cancel: cancel,
		planned: make(map[Hash]planned), seen: make(map[Hash]time.Time),
		budget: rate.NewLimiter(answerBytesPerSecond, answerBurst),
	}
	group.Go(func() { k.read(ctx, inbox, m) })
	group.Go(func() { k.write(ctx, m) })
	return k
}

func (k *link) read(ctx context.Context, inbox chan<- inbound, m *metrics) {
	pause := resubscribe
	tell := func(i inbound) {
		select {
		case inbox <- i:
		case <-ctx.Done():
		}
	}
	for {
		err := k.bus.Subscribe(ctx,
			func() { pause = resubscribe; tell(inbound{link: k, ready: true}) },
			func(msg Message) { tell(inbound{link: k, message: msg}) })
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrGap) || errors.Is(err, ErrBusClosed) {
			// A bus that is closed is about to be taken from us.
			m.gaps.Inc()
			k.log.DebugContext(ctx, "subscription ended; subscribing anew", "error", err)
		} else {
			k.log.WarnContext(ctx, "subscription failed; trying again", "error", err)
		}
		if !sleep(ctx, jitter(pause)) {
			return
		}
		pause = min(2*pause, resubscribeMax)
	}
}

func (k *link) write(ctx context.Context, m *metrics) {
	for {
		select {
		case <-ctx.Done():
			return
		case msg := <-k.out:
			sending, cancel := context.WithTimeout(ctx, publishTimeout)
			err := k.bus.Publish(sending, msg)
			cancel()
			if err != nil && ctx.Err() == nil {
				m.dropped.Inc()
				k.log.DebugContext(ctx, "message not published", "subject", msg.Subject, "error", err)
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// plan notes an answer, unless it is planned already; what was on the bus a moment ago waits, for others who may want it too.
func (k *link) plan(what addressed, at time.Time) {
	hash := what.record.hash
	if _, ok := k.planned[hash]; ok || len(k.planned) >= maxAnswers {
		return
	}
	if last, ok := k.seen[hash]; ok && last.Add(answerQuiet).After(at) {
		at = last.Add(answerQuiet)
	}
	k.order++
	k.planned[hash] = planned{what, at, k.order}
}

// heard notes that a record was on the bus: nobody needs it from us.
func (k *link) heard(hash Hash, now time.Time) {
	delete(k.planned, hash)
	k.seen[hash] = now
	if len(k.seen) > maxAnswers {
		maps.DeleteFunc(k.seen, func(_ Hash, at time.Time) bool { return now.Sub(at) >= answerQuiet })
	}
	if len(k.seen) > maxAnswers {
		clear(k.seen)
	}
}

// due takes out the answers whose time has come, as far as the budget goes, and returns when the next one comes. What the
// budget doesn't cover is not said: who needs it asks again.
func (k *link) due(now time.Time) (out []addressed, next time.Time) {
	var ready []planned
	for hash, p := range k.planned {
		if p.at.After(now) {
			next = earliest(next, p.at)
			continue
		}
		delete(k.planned, hash)
		ready = append(ready, p)
	}
	slices.SortFunc(ready, func(a, b planned) int { return cmp.Compare(a.order, b.order) })
	for _, p := range ready {
		if k.budget.AllowN(now, max(len(p.what.record.raw), answerLeastCost)) {
			out = append(out, p.what)
		}
	}
	return out, next
}
