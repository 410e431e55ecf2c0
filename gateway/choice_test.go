package gateway

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"
	"pgregory.net/rapid"
)

func TestChoice(t *testing.T) {
	start := time.Unix(0, 0)
	well := sight{up: true, rtt: 20 * time.Millisecond}
	none, blocked := sight{}, sight{why: "gateway-0: dial: no answer in 2s"}
	lossy, slow := well, well
	lossy.loss, slow.rtt = 0.1, 60*time.Millisecond
	type step struct {
		for_      time.Duration
		quic, tcp sight
		want, why string
	}
	for name, steps := range map[string][]step{
		"QUIC by default": {{time.Minute, well, well, "quic", "QUIC gets through"}},
		"no TCP":          {{time.Minute, lossy, none, "quic", "the peer takes no links over TCP"}},
		"TCP is blocked":  {{time.Minute, lossy, blocked, "quic", "TCP does not get through: gateway-0"}},
		"neither":         {{time.Minute, blocked, blocked, "quic", ""}},
		"UDP is blocked":  {{0, blocked, well, "tcp", "QUIC does not get through: gateway-0: dial"}},
		"both lose":       {{time.Minute, lossy, sight{up: true, rtt: well.rtt, loss: 0.1}, "quic", ""}},
		"UDP is shed": {
			{worseFor - time.Second, lossy, well, "quic", ""},
			{2 * time.Second, lossy, well, "tcp", "QUIC loses 10.0 % of its packets, TCP 0.0 %"},
			{time.Minute, sight{up: true, rtt: well.rtt, loss: 0.03}, well, "tcp", "QUIC loses"},
			{minHold + time.Second, well, well, "quic", "QUIC gets through"},
		},
		"UDP is slow":     {{worseFor + time.Second, slow, well, "tcp", "a round trip takes 60ms over QUIC, 20ms over TCP"}},
		"TCP is slow too": {{worseFor + time.Second, slow, slow, "quic", ""}},
		"not for a moment": {
			{time.Second, lossy, well, "quic", ""}, {time.Second, well, well, "quic", ""}, {worseFor - time.Second, lossy, well, "quic", ""},
		},
		"it comes back, for longer each time": {
			{0, blocked, well, "tcp", ""},
			{minHold - time.Second, well, well, "tcp", ""},
			{2 * time.Second, well, well, "quic", ""},
			{0, blocked, well, "tcp", ""},
			{2*minHold - time.Second, well, well, "tcp", ""},
			{2 * time.Second, well, well, "quic", ""},
			{0, blocked, well, "tcp", ""},
			{4*minHold - time.Second, well, well, "tcp", ""},
			{2 * time.Second, well, well, "quic", ""},
			{steadyFor + time.Second, well, well, "quic", ""},
			{0, blocked, well, "tcp", ""},
			{minHold + time.Second, well, well, "quic", ""},
		},
	} {
		var c choice
		now := start
		for i, s := range steps {
			for end := now.Add(s.for_); ; now = now.Add(watchEvery) {
				c.judge(now, s.quic, s.tcp)
				if !now.Before(end) {
					break
				}
			}
			if got, why := c.explain(); got != s.want || !strings.Contains(why, s.why) {
				t.Errorf("%s, step %d: %s because %q, want %s because %q", name, i+1, got, why, s.want, s.why)
			}
		}
	}
}

// Whatever is seen, QUIC isn't left and taken again more often than its hold allows.
func TestChoiceDoesNotFlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		any := rapid.Custom(func(t *rapid.T) sight {
			return sight{
				up: rapid.Bool().Draw(t, "up"), suspect: rapid.Bool().Draw(t, "suspect"), loss: rapid.Float64Range(0, 0.2).Draw(t, "loss"),
				rtt: time.Duration(rapid.IntRange(0, 100).Draw(t, "rtt")) * time.Millisecond, why: "blocked",
			}
		})
		var c choice
		now := time.Unix(0, 0)
		var back []time.Time // when QUIC was taken again, with TCP there
		for range 200 {
			quic, tcp := any.Draw(t, "quic"), any.Draw(t, "tcp")
			for range rapid.IntRange(1, 40).Draw(t, "looks") {
				now = now.Add(watchEvery)
				if c.judge(now, quic, tcp) {
					to, _ := c.explain()
					if (to == transportTCP && !tcp.up) || (to == transportQUIC && !quic.up) {
						t.Fatalf("took %s, which isn't up", to)
					}
					if to == transportQUIC && tcp.up {
						back = append(back, now)
					}
				}
			}
		}
		for i := 1; i < len(back); i++ {
			if back[i].Sub(back[i-1]) < minHold {
				t.Errorf("QUIC was taken again after %s", back[i].Sub(back[i-1]))
			}
		}
	})
}

func TestRun(t *testing.T) {
	const chunk = 16 << 10
	var in, out run
	full := func(times int, ack int) (n int) {
		for range times {
			if bytes := in.add(chunk, &out); bytes >= bulkRun && bytes%bulkRun < chunk {
				n++
			}
			out.add(ack, &in)
		}
		return n
	}
	if n := full(256, 40); n != 4 {
		t.Errorf("4 MiB with acknowledgements are bulk %d times, want 4", n)
	}
	if n := full(1000, 2*turnBytes); n > 1 {
		t.Errorf("requests and answers of 16 KiB are bulk, %d times", n)
	}
}

// UDP is blocked in the midst and comes back: streams go over TCP meanwhile, and none fails that is opened after the links know.
func TestUDPBlockedInTheMidst(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		w.linkTCP = true
		home, away := w.cluster("eu"), w.cluster("us")
		eu, us := home.gateway("gateway-0"), []*testGateway{away.gateway("gateway-0"), away.gateway("gateway-1")}
		away.export("checkout.shop", nil, echo)
		w.publish()
		eu.up("us", 4+len(us))
		link := (*eu.links.Load())[clusterName("us")]
		ask := func(for_ time.Duration) (slowest time.Duration) {
			t.Helper()
			for end := time.Now().Add(for_); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				start := time.Now()
				if _, echoed, err := eu.ask("us", "checkout.shop", "hello"); err != nil || echoed != "hello" {
					t.Fatalf("echoed %q, %v", echoed, err)
				}
				slowest = max(slowest, time.Since(start))
			}
			return slowest
		}
		ask(3 * time.Second)
		if transport, _ := link.choice.explain(); transport != transportQUIC {
			t.Errorf("over %s though all is well", transport)
		}
		w.router.dropIf(func(simnet.Packet) bool { return true })
		if slowest := ask(2 * time.Second); slowest > 500*time.Millisecond {
			t.Errorf("the slowest took %s", slowest)
		}
		if transport, why := link.choice.explain(); transport != transportTCP || !strings.Contains(why, "QUIC does not get through") {
			t.Errorf("over %s because %q, with UDP blocked", transport, why)
		}
		if report := link.report(); report.GetState() != "up" || report.GetTransport() != transportTCP || len(report.GetCarriers()) != 2 {
			t.Errorf("reports %v", report)
		}
		w.router.dropIf(nil)
		ask(dialTimeout + maxBackoff + minHold + time.Second)
		synctest.Wait()
		if transport, why := link.choice.explain(); transport != transportQUIC {
			t.Errorf("over %s because %q, with UDP back", transport, why)
		}
	})
}
