package membus_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/federation/bustest"
	"github.com/isthmus-mesh/isthmus/federation/membus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	bustest.Run(t, func(*testing.T) bustest.Broker {
		hub := membus.NewHub(membus.Faults{})
		names := make(map[bustest.Bus]string)
		return bustest.Broker{
			Connect: func(*testing.T) bustest.Bus {
				name := strconv.Itoa(len(names))
				b := hub.Bus(name)
				names[b] = name
				return b
			},
			Break: func(_ *testing.T, b bustest.Bus) func() {
				hub.SetUp(names[b], false)
				return func() { hub.SetUp(names[b], true) }
			},
			Subscriptions: hub.Subscriptions,
		}
	})
}

// collect subscribes b until the bubble's time runs for as long, and returns what came.
func collect(t *testing.T, b *membus.Bus, publish func()) []string {
	t.Helper()
	var got []string
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Subscribe(ctx, func() {}, func(m federation.Message) { got = append(got, string(m.Data)) })
	}()
	synctest.Wait()
	publish()
	time.Sleep(time.Minute)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("subscribe: %v", err)
	}
	return got
}

func TestFaults(t *testing.T) {
	const n = 1000
	run := func(t *testing.T, f membus.Faults) []string {
		t.Helper()
		hub := membus.NewHub(f)
		a, b := hub.Bus("a"), hub.Bus("b")
		return collect(t, b, func() {
			for i := range n {
				if err := a.Publish(t.Context(), federation.Message{Subject: "fed.v1.x.head", Data: []byte(strconv.Itoa(i))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	inOrder := func(got []string) bool {
		last := -1
		for _, s := range got {
			i, _ := strconv.Atoi(s)
			if i < last {
				return false
			}
			last = i
		}
		return true
	}
	synctest.Test(t, func(t *testing.T) {
		if got := run(t, membus.Faults{Delay: time.Second}); len(got) != n || !inOrder(got) {
			t.Errorf("delayed: %d messages", len(got))
		}
		if got := run(t, membus.Faults{Drop: 0.3, Seed: 1}); len(got) < n/2 || len(got) > n*9/10 || !inOrder(got) {
			t.Errorf("30 %% dropped: %d of %d messages came", len(got), n)
		}
		if got := run(t, membus.Faults{Duplicate: 0.5, Queue: 2 * n, Seed: 1}); len(got) < n*5/4 || len(got) > n*7/4 {
			t.Errorf("half of them twice: %d messages came", len(got))
		}
		if got := run(t, membus.Faults{Jitter: time.Second, Seed: 1}); len(got) != n || inOrder(got) {
			t.Errorf("reordered: %d messages came, in order: %v", len(got), inOrder(got))
		}
		swallow := func(_, _ string, m federation.Message) (federation.Message, bool) {
			return m, string(m.Data) == "7"
		}
		if got := run(t, membus.Faults{Tamper: swallow}); len(got) != 1 {
			t.Errorf("all but one swallowed: %d messages came", len(got))
		}
	})
}

func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := membus.NewHub(membus.Faults{})
		a, b, c := hub.Bus("a"), hub.Bus("b"), hub.Bus("c")
		hub.Cut("a", "b", true)
		got := collect(t, b, func() {
			for _, from := range []*membus.Bus{a, c} {
				if err := from.Publish(t.Context(), federation.Message{Subject: "fed.v1.want", Data: []byte("x")}); err != nil {
					t.Error(err)
				}
			}
		})
		if len(got) != 1 || hub.Published() != 2 || hub.Delivered() != 1 {
			t.Errorf("%d messages came", len(got))
		}
	})
}
