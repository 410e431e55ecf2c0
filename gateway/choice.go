package gateway

import (
	"fmt"
	"sync"
	"time"
)

// choice is which transport new streams of a link take. QUIC, as long as it gets through and does it well: a stream over it needs no
// handshake, and a lost packet is found sooner. What is measured has to be so for a while before it changes anything, and for longer the
// more often it has changed. It holds no timer: whoever owns the link asks. Safe for concurrent use.
type choice struct {
	mu     sync.Mutex
	now    string        // guarded by mu: the transport
	why    string        // guarded by mu
	since  time.Time     // guarded by mu: of this choice
	other  time.Time     // guarded by mu: since when the other one would be better; zero: it isn't
	hold   time.Duration // guarded by mu: how long QUIC must have been well before it is taken again
	bulkOK bool          // guarded by mu: bulk may go over TCP
}

// sight is what is seen of a link's connections of one transport.
type sight struct {
	up      bool // one at least takes streams
	suspect bool // all that do are suspect
	rtt     time.Duration
	loss    float64 // of packets, lately
	why     string  // it isn't up; empty: there is none
}

const (
	// worseFor is how long QUIC must have been worse before TCP is taken.
	worseFor = 3 * time.Second
	// minHold is how long it must have been well before it is taken again; twice as long each time that it was left again within steadyFor, at
	// most maxHold.
	minHold   = 3 * time.Second
	maxHold   = 5 * time.Minute
	steadyFor = 2 * time.Minute

	// QUIC is worse when it loses so much, and several times what TCP does (UDP is shed somewhere on the way); or when its packets travel so
	// much longer. It is well again below half of that.
	badLoss      = 0.05
	lossRatio    = 4
	badRTTRatio  = 1.5
	badRTTBeyond = 20 * time.Millisecond
	// bulkLoss is the loss of TCP up to which it carries bulk.
	bulkLoss = 0.02
)

// worse says why QUIC is worse than TCP; empty: it isn't. severity is 1 for who uses QUIC, and less for who has left it.
func worse(quic, tcp sight, severity float64) string {
	if quic.loss > badLoss*severity && quic.loss > lossRatio*tcp.loss {
		return fmt.Sprintf("QUIC loses %.1f %% of its packets, TCP %.1f %%", 100*quic.loss, 100*tcp.loss)
	}
	bad := float64(tcp.rtt)*(1+(badRTTRatio-1)*severity) + float64(badRTTBeyond)*severity
	if tcp.rtt > 0 && float64(quic.rtt) > bad {
		return fmt.Sprintf("a round trip takes %s over QUIC, %s over TCP", quic.rtt.Round(time.Millisecond/10), tcp.rtt.Round(time.Millisecond/10))
	}
	return ""
}

// judge looks at both and reports whether the choice is another one now.
func (c *choice) judge(now time.Time, quic, tcp sight) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now == "" {
		c.now, c.hold = transportQUIC, minHold
	}
	c.bulkOK = tcp.up && !tcp.suspect && tcp.loss <= bulkLoss && worse(tcp, quic, 1) == ""
	to, why, wait := c.wish(quic, tcp)
	if to == c.now {
		c.other = time.Time{}
		if why != "" {
			c.why = why
		}
		return false
	}
	if c.other.IsZero() {
		c.other = now
	}
	if now.Sub(c.other) < wait {
		if to == transportQUIC {
			c.why = fmt.Sprintf("QUIC is well again, and taken once it has been so for %s", wait)
		}
		return false
	}
	if to == transportTCP {
		if c.since.IsZero() || now.Sub(c.since) > steadyFor {
			c.hold = minHold
		} else {
			c.hold = min(2*c.hold, maxHold)
		}
	}
	c.now, c.why, c.since, c.other = to, why, now, time.Time{}
	return true
}

// wish is what would be better, why (empty: as before), and for how long it must have been so. mu is held.
func (c *choice) wish(quic, tcp sight) (to, why string, wait time.Duration) {
	switch {
	case !quic.up && !tcp.up:
		return c.now, "", 0
	case !tcp.up && tcp.why == "":
		return transportQUIC, "the peer takes no links over TCP", 0
	case !tcp.up:
		return transportQUIC, "TCP does not get through: " + tcp.why, 0
	case !quic.up:
		return transportTCP, "QUIC does not get through: " + quic.why, 0
	case c.now == transportTCP:
		if bad := worse(quic, tcp, 0.5); bad != "" || quic.suspect {
			return transportTCP, bad, 0
		}
		return transportQUIC, "QUIC gets through", c.hold
	default:
		if bad := worse(quic, tcp, 1); bad != "" {
			return transportTCP, bad, worseFor
		}
		return transportQUIC, "QUIC gets through", 0
	}
}

// of returns the transport for a stream of a service that has bulk to move, or not.
func (c *choice) of(bulk bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bulk && c.bulkOK || c.now == transportTCP {
		return transportTCP
	}
	return transportQUIC
}

// explain returns the transport that streams take, and why that one.
func (c *choice) explain() (transport, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now, c.why
}
