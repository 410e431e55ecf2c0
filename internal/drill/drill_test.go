package drill_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/internal/drill"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A drill is on for as long as control renews it, ends by itself, and does not begin anew by what was told before.
func TestBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checkout, err := topology.NewServiceName("shop", "checkout")
		if err != nil {
			t.Fatal(err)
		}
		pay, err := topology.NewServiceName("shop", "pay")
		if err != nil {
			t.Fatal(err)
		}
		var b drill.Board
		began := time.Now()
		follow := func(id string, ends time.Duration, left time.Duration) {
			b.Follow(map[topology.ServiceName]*topology.Drill{checkout: {ID: id, Ends: began.Add(ends), Left: left}})
		}
		on := func(want string) {
			t.Helper()
			synctest.Wait()
			got := ""
			if d := b.Of(checkout); d != nil {
				got = d.ID
			}
			if got != want {
				t.Errorf("after %v the drill %q is on, want %q", time.Since(began), got, want)
			}
			if b.Of(pay) != nil {
				t.Error("a service looks dead that nobody drills")
			}
		}
		on("")
		follow("a", 5*time.Second, 5*time.Second)
		on("a")
		first := b.Of(checkout)
		var over atomic.Bool
		first.After(func() { over.Store(true) })
		time.Sleep(4 * time.Second)
		follow("a", 9*time.Second, 5*time.Second) // renewed
		time.Sleep(4 * time.Second)
		on("a")
		if b.Of(checkout) != first || over.Load() {
			t.Error("renewed, it is another one")
		}
		time.Sleep(1100 * time.Millisecond) // not renewed any more
		on("")
		synctest.Wait()
		if !over.Load() {
			t.Error("nobody was told that it is over")
		}
		select {
		case <-first.Over():
		default:
			t.Error("it is not over")
		}
		follow("a", 9*time.Second, 5*time.Second) // the same word again, with another change
		on("")
		follow("b", 20*time.Second, 5*time.Second)
		on("b")
		b.Follow(nil) // control says that it is over
		on("")
		follow("b", 20*time.Second, 5*time.Second)
		on("b")
		b.Close()
		on("")
	})
}
