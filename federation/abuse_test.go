package federation_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/federation/membus"
)

// say publishes records as somebody who has a place on the bus, and no key.
func say(t *testing.T, hub *membus.Hub, records ...[]byte) {
	t.Helper()
	for _, r := range records {
		if err := hub.Bus("mallory").Publish(t.Context(), federation.Message{Subject: "fed.v1.x.head", Data: r}); err != nil {
			t.Fatal(err)
		}
	}
}

func sayWant(t *testing.T, hub *membus.Hub, want []byte) {
	t.Helper()
	if err := hub.Bus("mallory").Publish(t.Context(), federation.Message{Subject: federation.SubjectWant, Data: want}); err != nil {
		t.Fatal(err)
	}
}

// TestTwoStories: one is told at one end of a line, another at the other end, with the same number: all see it, and each keeps
// what it had.
func TestTwoStories(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, line, membus.Faults{Delay: 10 * time.Millisecond})
		liar := federation.NewAuthor(t, "liar")
		for _, s := range w.sites {
			s.peers = append(s.peers, liar.Spec())
		}
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		root, at := liar.Root(), time.Now()
		say(t, w.hubs[0], root)
		say(t, w.hubs[0], liar.Tell(1, at)...)
		within(t, 5*time.Second, "all hold the first story", func() bool {
			for _, s := range w.sites {
				if v := s.member.Views().Cluster(liar.Spec().Cluster); v.Freshness != federation.Fresh {
					return false
				}
			}
			return true
		})
		next := at.Add(time.Second)
		say(t, w.hubs[0], liar.Tell(2, next)...)
		say(t, w.hubs[2], liar.Tell(3, next)...)
		within(t, 5*time.Second, "all have seen both", func() bool {
			for _, s := range w.sites {
				if v := s.member.Views().Cluster(liar.Spec().Cluster); !v.Quarantined {
					return false
				}
			}
			return true
		})
		for _, s := range w.sites {
			v := s.member.Views().Cluster(liar.Spec().Cluster)
			if len(v.Exports) != 3 || v.Reason == "" {
				t.Errorf("%s: %d exports: %s", s.name, len(v.Exports), v.Reason)
			}
		}
	})
}

// TestForgeryDoesNotSilence: whoever holds a record tells it, although somebody else has just said its like with a signature
// that doesn't fit.
func TestForgeryDoesNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, star, membus.Faults{})
		gone := federation.NewAuthor(t, "gone")
		for _, s := range w.sites {
			s.peers = append(s.peers, gone.Spec())
		}
		late := w.sites[2]
		w.sites[0].start()
		w.sites[1].start()
		defer w.stop()
		synctest.Wait()
		records := append([][]byte{gone.Root()}, gone.Tell(1, time.Now())...)
		say(t, w.hubs[0], records...)
		time.Sleep(time.Minute)
		late.start()
		for range 100 { // for ten seconds
			say(t, w.hubs[0], federation.Forge(t, records[0]), federation.Forge(t, records[1]))
			time.Sleep(100 * time.Millisecond)
		}
		if v := late.member.Views().Cluster(gone.Spec().Cluster); v.Freshness == federation.Waiting {
			t.Errorf("%s: %s", v.State(), v.Reason)
		}
	})
}

// TestOneAnswers: of several who hold what somebody wants, one tells it.
func TestOneAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 6, star, membus.Faults{Delay: 5 * time.Millisecond})
		gone := federation.NewAuthor(t, "gone")
		for _, s := range w.sites {
			s.peers = append(s.peers, gone.Spec())
		}
		late := w.sites[5]
		for _, s := range w.sites[:5] {
			s.start() // and have nothing to tell of themselves
		}
		defer w.stop()
		synctest.Wait()
		records := append([][]byte{gone.Root()}, gone.Tell(1, time.Now())...)
		say(t, w.hubs[0], records...)
		time.Sleep(5 * time.Second)
		before := w.hubs[0].Published()
		late.start()
		within(t, 5*time.Second, "the late one knows", func() bool {
			return late.member.Views().Cluster(gone.Spec().Cluster).Freshness == federation.Fresh
		})
		// One or two Wants, and each record once; sometimes two speak at the same moment.
		if got := w.hubs[0].Published() - before; got > 2+2*len(records) {
			t.Errorf("%d messages for %d records", got, len(records))
		}
	})
}

// TestWantFlood: asking a thousand times doesn't make a member say more than its budget.
func TestWantFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, line, membus.Faults{})
		w.start()
		defer w.stop()
		time.Sleep(time.Second)
		hub := w.hubs[0]
		before := hub.Published()
		const asked, seconds = 1000, 10
		for range asked {
			sayWant(t, hub, federation.EncodeWant(t, 0, 0, w.sites[0].domain))
			time.Sleep(seconds * time.Second / asked)
		}
		// Eight records at most, each twice a second at most, and a head of its own.
		if said := hub.Published() - before - asked; said > 8*2*seconds+8+2 || said < 7*seconds {
			t.Errorf("%d messages in answer to %d in %d s", said, asked, seconds)
		}
	})
}

// TestBoast: that somebody claims to hold newer records, of a peer or of us, makes a member ask a few times and no more. So do
// heads of domains that it doesn't know.
func TestBoast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, line, membus.Faults{})
		silent, stranger := federation.NewAuthor(t, "silent"), federation.NewAuthor(t, "stranger")
		for _, s := range w.sites {
			s.peers = append(s.peers, silent.Spec())
		}
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		time.Sleep(15 * time.Second)
		hub := w.hubs[1]
		sayWant(t, hub, federation.EncodeWant(t, 9, 1<<62, w.sites[0].domain, w.sites[1].domain, silent.Spec().Domain, stranger.Spec().Domain))
		before := w.published()
		const minutes = 5
		strange := 0
		for i := range minutes * 60 {
			if i%10 == 0 {
				say(t, hub, stranger.Tell(i, time.Now())[0])
				strange++
			}
			time.Sleep(time.Second)
		}
		// Each head goes out on its owner's buses and is passed on once; each Want and what answers it are a few more.
		heads := minutes * 6 * (2 + 2)
		// And who waits for somebody asks once a minute.
		if got := w.published() - before - strange; got > heads+2*2*minutes*2+30 {
			t.Errorf("%d messages where %d heads go out", got, heads)
		}
		everybodyKnows(t, time.Second, w.sites)
	})
}

// TestEmptyPromise: a peer that names a record which nobody has makes others ask for it ever more slowly; one that floods us
// with heads is taken no faster than the limit.
func TestEmptyPromise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, line, membus.Faults{})
		liar := federation.NewAuthor(t, "liar")
		for _, s := range w.sites {
			s.peers = append(s.peers, liar.Spec())
		}
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		hub := w.hubs[1]
		say(t, hub, liar.Root())
		before := w.published()
		const minutes = 5
		for range minutes * 6 {
			say(t, hub, liar.Tell(1, time.Now())[0]) // and none of its parts
			time.Sleep(10 * time.Second)
		}
		// Three domains' heads go out at most once on each of four connections; Wants every half minute from both on two buses.
		if got, most := w.published()-before, minutes*6*3*2+2*2*minutes*4+40; got > most {
			t.Errorf("%d messages, want at most %d", got, most)
		}
		before = w.published()
		const flood = 200
		for range flood {
			say(t, hub, liar.Tell(2, time.Now())[0])
			time.Sleep(time.Millisecond)
		}
		if got := w.published() - before - flood; got > 30+2+40 {
			t.Errorf("%d messages after a flood of %d heads in a moment", got, flood)
		}
		if !w.sites[0].knows(w.sites[1]) || w.sites[0].member.Views().Cluster(liar.Spec().Cluster).Quarantined {
			t.Error("the flood took others with it, or was taken for two stories")
		}
	})
}

// TestClocks: clocks that differ by minutes are no obstacle; by more, they are.
func TestClocks(t *testing.T) {
	for _, test := range []struct {
		skew time.Duration
		want federation.Freshness
	}{
		{2 * time.Minute, federation.Fresh},
		{-30 * time.Second, federation.Fresh},
		{-4 * time.Minute, federation.Stale},
		{6 * time.Minute, federation.Waiting},
		{-6 * time.Minute, federation.Waiting},
	} {
		t.Run(test.skew.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2, line, membus.Faults{})
				w.sites[1].now = func() time.Time { return time.Now().Add(test.skew) }
				w.start()
				defer w.stop()
				time.Sleep(30 * time.Second)
				if v := w.sites[0].member.Views().Cluster(w.sites[1].name); v.Freshness != test.want {
					t.Errorf("%s: %s", v.Freshness, v.Reason)
				}
			})
		})
	}
}

func TestSetBuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, line, membus.Faults{})
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		a := w.sites[0]
		if n := w.hubs[1].Subscriptions(); n != 2 {
			t.Fatalf("%d subscriptions", n)
		}
		a.member.SetBuses(nil)
		synctest.Wait()
		if w.hubs[0].Subscriptions() != 0 || w.hubs[1].Subscriptions() != 1 {
			t.Errorf("%d and %d subscriptions are left", w.hubs[0].Subscriptions(), w.hubs[1].Subscriptions())
		}
		time.Sleep(2 * time.Minute)
		if a.knows(w.sites[1]) {
			t.Error("still fresh, from nowhere")
		}
		a.member.SetBuses(a.buses)
		everybodyKnows(t, 5*time.Second, w.sites)
		// A bus that was closed and opened again under the same name is another bus.
		old := a.buses["c1"].(*membus.Bus)
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		a.buses["c1"] = w.hubs[1].Bus(a.name.String())
		a.member.SetBuses(a.buses)
		w.sites[1].tell()
		everybodyKnows(t, 5*time.Second, w.sites)
	})
}

func TestMemberConfig(t *testing.T) {
	s := newSite(t, "eu")
	good := federation.MemberConfig{Cluster: s.name, Domain: s.domain, Keys: s.keys}
	for what, change := range map[string]func(*federation.MemberConfig){
		"cluster": func(c *federation.MemberConfig) { c.Cluster = federation.MemberConfig{}.Cluster },
		"domain":  func(c *federation.MemberConfig) { c.Domain = federation.MemberConfig{}.Domain },
		"keys":    func(c *federation.MemberConfig) { c.Keys = nil },
		"region":  func(c *federation.MemberConfig) { c.Region = fmt.Sprintf("%064d", 0) },
		"state":   func(c *federation.MemberConfig) { c.StateDir = "/dev/null/state" },
	} {
		c := good
		change(&c)
		if _, err := federation.NewMember(c); err == nil {
			t.Errorf("without a good %s: taken", what)
		}
	}
	m, err := federation.NewMember(good)
	if err != nil {
		t.Fatal(err)
	}
	a, b := newSite(t, "us").spec(), newSite(t, "ap").spec()
	for what, bad := range map[string]federation.PeerSpec{
		"nothing":           {},
		"itself":            s.spec(),
		"its own name":      {Cluster: s.name, Domain: b.Domain, RootFingerprint: b.RootFingerprint},
		"its own domain":    {Cluster: b.Cluster, Domain: s.domain, RootFingerprint: b.RootFingerprint},
		"another's name":    {Cluster: a.Cluster, Domain: b.Domain, RootFingerprint: b.RootFingerprint},
		"another's domain":  {Cluster: b.Cluster, Domain: a.Domain, RootFingerprint: b.RootFingerprint},
		"another's key":     {Cluster: b.Cluster, Domain: b.Domain, RootFingerprint: a.RootFingerprint},
		"no key":            {Cluster: b.Cluster, Domain: b.Domain},
		"another, complete": a,
	} {
		if err := m.SetPeers([]federation.PeerSpec{a, bad}); err == nil {
			t.Errorf("a peer with %s: taken", what)
		}
		if n := len(m.Views().All()); n != 1 {
			t.Errorf("a peer with %s: %d views", what, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := m.Run(ctx); err == nil {
		t.Error("ran twice")
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, star, membus.Faults{})
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		w.sites[2].stop()
		say(t, w.hubs[0], []byte("garbage"), federation.NewAuthor(t, "x").Root())
		time.Sleep(2 * time.Minute)
		got := make(map[string]float64)
		families, err := w.sites[0].metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				key := f.GetName()
				for _, l := range m.GetLabel() {
					key += " " + l.GetValue()
				}
				got[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		for key, want := range map[string][2]float64{
			"isthmus_federation_views Fresh":                      {1, 1},
			"isthmus_federation_views Stale":                      {1, 1},
			"isthmus_federation_views Waiting":                    {0, 0},
			"isthmus_federation_head_age_seconds c1":              {0, 11},
			"isthmus_federation_head_age_seconds c2":              {110, 130},
			"isthmus_federation_refused_total malformed":          {1, 1},
			"isthmus_federation_refused_total unknown_key":        {1, 10},
			"isthmus_federation_accepted_total c1 head.v1":        {12, 15},
			"isthmus_federation_accepted_total c1 member-root.v1": {1, 1},
			"isthmus_federation_published_total own":              {12, 100},
			"isthmus_federation_published_total want":             {1, 20},
			"isthmus_federation_dropped_total":                    {0, 0},
		} {
			if v, ok := got[key]; !ok || v < want[0] || v > want[1] {
				t.Errorf("%s is %v (there: %v), want %v to %v", key, v, ok, want[0], want[1])
			}
		}
	})
}
