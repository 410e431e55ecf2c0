package drain_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/drain"
)

func TestWaitsForWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d drain.Drain
		done, ok := d.Add()
		if !ok {
			t.Fatal("Add before Start: refused")
		}
		waited := make(chan error, 1)
		go func() { waited <- d.Wait(t.Context()) }()
		synctest.Wait()
		select {
		case err := <-waited:
			t.Fatalf("Wait returned %v with work in flight", err)
		case <-d.Draining():
		}
		if _, ok := d.Add(); ok {
			t.Error("Add while draining: accepted")
		}
		done()
		done() // harmless
		if err := <-waited; err != nil {
			t.Errorf("Wait: %v", err)
		}
		if n := d.InFlight(); n != 0 {
			t.Errorf("InFlight = %d", n)
		}
	})
}

func TestWaitGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d drain.Drain
		done, _ := d.Add()
		defer done()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: got %v, want deadline exceeded", err)
		}
	})
}

func TestIdleDrainsAtOnce(t *testing.T) {
	var d drain.Drain
	if err := d.Wait(t.Context()); err != nil {
		t.Errorf("Wait: %v", err)
	}
	d.Start() // again: harmless
}
