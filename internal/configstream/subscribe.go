package configstream

import (
	"cmp"
	"context"
	"fmt"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// subscription is a service that this program wants to hear of. Guarded by Client.mu but for the channel.
type subscription struct {
	present  bool
	asked    uint64        // when it was last asked for; a count, not a time
	answered chan struct{} // closed when control has said whether it exists
}

func (s *subscription) answer(present bool) {
	s.present = present
	if !s.isAnswered() {
		close(s.answered)
	}
}

func (s *subscription) isAnswered() bool {
	select {
	case <-s.answered:
		return true
	default:
		return false
	}
}

// Subscribe makes name one of the services that the snapshot holds, if it exists. It returns when control has answered for
// it, or at once when it has before, now or in the state kept on disk: look at the snapshot then. While control is away
// it waits for Patience (ten seconds for a control that is there) and returns ErrUnavailable; the subscription stands nevertheless.
//
// Subscriptions are kept until the state file goes, used or not: they cost what they hold, and dropping one in use would
// cost a call. Only when there are MaxSubscriptions, the service asked for longest ago that does not exist makes room.
func (c *Client) Subscribe(ctx context.Context, name topology.ServiceName) error {
	answered, err := c.subscribe(name)
	if err != nil {
		return fmt.Errorf("configstream: service %s: %w", name, err)
	}
	select {
	case <-answered:
		return nil
	default:
	}
	patience, limit := time.NewTimer(c.cfg.Patience), time.NewTimer(answerTimeout)
	defer patience.Stop()
	defer limit.Stop()
	for {
		changed := c.status.Changed()
		s := c.status.Load()
		expired := patience.C
		if s.Connected {
			expired = limit.C
		}
		select {
		case <-answered:
			return nil
		case <-changed:
		case <-expired:
			return fmt.Errorf("configstream: service %s is not known yet: %w", name, cmp.Or(s.Err, ErrUnavailable))
		case <-ctx.Done():
			return fmt.Errorf("configstream: service %s is not known yet: %w: %w", name, ErrUnavailable, context.Cause(ctx))
		}
	}
}

// subscribe notes the wish and returns the channel that the answer closes.
func (c *Client) subscribe(name topology.ServiceName) (<-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if s, ok := c.services[name]; ok {
		s.asked = c.asked
		return s.answered, nil
	}
	if name.IsZero() {
		return nil, topology.ErrName
	}
	if len(c.services) >= MaxSubscriptions && !c.makeRoom() {
		return nil, ErrTooManyServices
	}
	s := &subscription{asked: c.asked, answered: make(chan struct{})}
	c.services[name] = s
	c.outbox.subscribe(name, true)
	return s.answered, nil
}

// makeRoom forgets a service that does not exist. Called with mu held.
func (c *Client) makeRoom() bool {
	var oldest topology.ServiceName
	for name, s := range c.services {
		if s.isAnswered() && !s.present && (oldest.IsZero() || s.asked < c.services[oldest].asked) {
			oldest = name
		}
	}
	if oldest.IsZero() {
		return false
	}
	delete(c.services, oldest)
	c.outbox.subscribe(oldest, false)
	return true
}

// answer tells the subscribers what a cut, which the store has applied, says of their services.
func (c *Client) answer(cut stage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tell := func(name topology.ServiceName) {
		if s, ok := c.services[name]; ok {
			s.answer(c.store.has(ServiceKey(name)))
		}
	}
	for _, r := range cut.upsert {
		if name, ok := serviceOf(r.GetKey()); ok {
			tell(name)
		}
	}
	for _, key := range cut.remove {
		if name, ok := serviceOf(key); ok {
			tell(name)
		}
	}
	for _, name := range cut.absent {
		tell(name)
	}
}

// outbox is what is to be said to control next. Guarded by Client.mu; the wake channel needs no guard.
type outbox struct {
	change  map[topology.ServiceName]bool // subscribe or not
	last    *configv1.Report              // kept: a new stream hears it again
	fresh   bool                          // last is to be sent
	stream  uint64                        // that is open
	applied uint64                        // the revision that is in force
	said    uint64                        // that control was told of last
	wake    chan struct{}                 // holds one: there is something
}

func (o *outbox) subscribe(name topology.ServiceName, want bool) {
	if o.change == nil {
		o.change = make(map[topology.ServiceName]bool)
	}
	o.change[name] = want
	o.ring()
}

func (o *outbox) report(r *configv1.Report) {
	o.last, o.fresh = r, true
	o.ring()
}

func (o *outbox) apply(cut Cut) {
	if cut.stream == o.stream && cut.revision > o.applied {
		o.applied = cut.revision
		o.ring()
	}
}

// reset prepares for a new stream, whose Hello has the subscriptions.
func (o *outbox) reset(stream uint64) {
	o.change = nil
	o.stream, o.applied, o.said = stream, 0, 0
	o.fresh = o.last != nil
	o.ring()
}

func (o *outbox) ring() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// next takes out what is to be sent.
func (c *Client) next() []*configv1.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*configv1.Request
	if len(c.outbox.change) > 0 {
		m := new(configv1.Subscribe)
		for name, want := range c.outbox.change {
			if want {
				m.Add = append(m.Add, name.String())
			} else {
				m.Remove = append(m.Remove, name.String())
			}
		}
		c.outbox.change = nil
		out = append(out, &configv1.Request{Message: &configv1.Request_Subscribe{Subscribe: m}})
	}
	if c.outbox.fresh {
		c.outbox.fresh = false
		out = append(out, &configv1.Request{Message: &configv1.Request_Report{Report: c.outbox.last}})
	}
	if c.outbox.applied > c.outbox.said {
		c.outbox.said = c.outbox.applied
		out = append(out, &configv1.Request{Message: &configv1.Request_Applied{Applied: &configv1.Applied{Revision: c.outbox.said}}})
	}
	return out
}
