package configstream_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
)

// A program gives account once a second: of everything first on each stream, and of what has changed from then on.
func TestAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heard []string
		p := newPlane(t, func(c *configstream.ServerConfig) {
			c.OnReport = func(_ *configstream.Session, r *configv1.Report) {
				heard = append(heard, r.GetTraffic()[0].GetService())
			}
		})
		p.server.Set(world())
		client := startAccounting(t, p, func(all bool) *configv1.Report {
			what := "changes"
			if all {
				what = "all"
			}
			return &configv1.Report{Traffic: []*configv1.Traffic{{Service: what}}}
		})
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		p.stop()
		synctest.Wait()
		p.start()
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		client.stop()
		want := []string{"all", "changes", "all", "changes"}
		if len(heard) != len(want) {
			t.Fatalf("heard %q, want %q", heard, want)
		}
		for i := range want {
			if heard[i] != want[i] {
				t.Fatalf("heard %q, want %q", heard, want)
			}
		}
	})
}

// A report of more than one may hold ends the stream.
func TestAccountLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world())
		client := startAccounting(t, p, func(bool) *configv1.Report {
			r := &configv1.Report{}
			for range configstream.MaxTraffic + 1 {
				r.Traffic = append(r.Traffic, &configv1.Traffic{Service: "checkout.shop"})
			}
			return r
		})
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if events := p.takeEvents(); !slices.Contains(events, "disconnect sidecar/shop/checkout-0") {
			t.Errorf("a report without bounds was taken: %q", events)
		}
		client.stop()
	})
}

func TestLatencyBuckets(t *testing.T) {
	for _, test := range []struct {
		d    time.Duration
		want int
	}{
		{0, 0},
		{time.Millisecond, 0},
		{1001 * time.Microsecond, 1},
		{1500 * time.Microsecond, 2},
		{2 * time.Millisecond, 2},
		{3 * time.Millisecond, 4},
		{80 * time.Millisecond, 13},
		{time.Second, 20},
		{time.Hour, configstream.LatencyBuckets - 1},
	} {
		got := configstream.LatencyBucket(test.d)
		if got != test.want {
			t.Errorf("%v is in bucket %d, want %d", test.d, got, test.want)
		}
		if got < configstream.LatencyBuckets-1 && test.d > configstream.LatencyEnd(got) || got > 0 && test.d <= configstream.LatencyEnd(got-1) {
			t.Errorf("%v is not in bucket %d, which ends at %v", test.d, got, configstream.LatencyEnd(got))
		}
	}
}
