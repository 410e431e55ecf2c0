package control_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/control"
)

// Whatever times a program's turns claim to be of, and whoever joins in what it tells, what is remembered of them is bounded by what is kept.
func TestTimelineBounded(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l := control.NewTimeline("eu", func() time.Time { return now })
	// Each older than the one before, or all at about the same time.
	for i := range 1_200 {
		l.Turn("sidecar/shop/liar", turn("checkout.shop", now.Add(-time.Duration(i)*10*time.Second), "eu", "us", "ejected", ""))
		l.Turn("sidecar/shop/other", turn("cart.shop", now.Add(-time.Duration(i)*time.Millisecond), "eu", "us", "ejected", fmt.Sprint(i)))
	}
	if kept, recent, _ := l.Held(); recent > kept {
		t.Errorf("%d turns may still be joined, of %d that are kept", recent, kept)
	}
	// Programs come and go; each joins in what the first has told.
	l = control.NewTimeline("eu", func() time.Time { return now })
	for i := range 4_200 {
		now = now.Add(time.Minute)
		l.Turn("sidecar/shop/first", turn("checkout.shop", now, "eu", "us", "ejected", ""))
		l.Turn(fmt.Sprintf("sidecar/shop/pod-%d", i), turn("checkout.shop", now, "eu", "us", "ejected", ""))
	}
	if kept, _, tellers := l.Held(); tellers > control.MaxTellers {
		t.Errorf("what %d programs have told is remembered, with %d events kept", tellers, kept)
	}
}

// A peer whose copies come and go all the time drives out neither what operators did nor what callers told, of the same service or of others.
func TestTimelineFlapping(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l := control.NewTimeline("eu", func() time.Time { return now })
	l.Tell(admin.EventDrain, "checkout.shop", "eu is drained")
	for i := range 600 {
		l.Turn("sidecar/shop/web", turn("cart.shop", now.Add(time.Duration(i)*time.Millisecond-time.Hour), "eu", "us", "ejected", fmt.Sprint(i)))
	}
	before := len(l.Of("cart.shop"))
	for i := range 20_000 {
		now = now.Add(time.Second)
		l.Capacity(fmt.Sprintf("s%d.shop", i%400), "us", i/400%2, (i/400+1)%2)
		l.Capacity("checkout.shop", "us", i%2, (i+1)%2)
	}
	kept := l.Of("checkout.shop")
	if !slices.ContainsFunc(kept, func(e admin.TimelineEvent) bool { return e.Kind == admin.EventDrain }) {
		t.Errorf("of %d events the drain is none", len(kept))
	}
	if after := len(l.Of("cart.shop")); after != before {
		t.Errorf("%d turns are kept, of %d", after, before)
	}
}
