package federation_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/federation/membus"
)

// shape says who dials whose server: links[i] are the servers that member i is a client of, besides its own.
type shape func(n int) (links [][]int)

func line(n int) [][]int {
	l := make([][]int, n)
	for i := range n - 1 {
		l[i] = []int{i + 1}
	}
	return l
}

func ring(n int) [][]int {
	l := line(n)
	l[n-1] = []int{0}
	return l
}

func star(n int) [][]int {
	l := make([][]int, n)
	for i := 1; i < n; i++ {
		l[i] = []int{0}
	}
	return l
}

// world is a federation in one process: each member has a server (a hub), and is a client of its neighbours'.
type world struct {
	sites []*site
	hubs  []*membus.Hub
}

func newWorld(t *testing.T, n int, of shape, faults membus.Faults) *world {
	t.Helper()
	w := new(world)
	for i := range n {
		w.sites = append(w.sites, newSite(t, fmt.Sprintf("c%d", i)))
		faults.Seed = uint64(i)
		w.hubs = append(w.hubs, membus.NewHub(faults))
	}
	for i, links := range of(n) {
		s := w.sites[i]
		for _, j := range append(links, i) {
			s.buses[fmt.Sprintf("c%d", j)] = w.hubs[j].Bus(s.name.String())
		}
		for j, o := range w.sites {
			if i != j {
				s.peers = append(s.peers, o.spec())
			}
		}
	}
	return w
}

func (w *world) start() {
	for _, s := range w.sites {
		s.start()
		s.tell()
	}
}

func (w *world) stop() {
	for _, s := range w.sites {
		s.stop()
	}
}

func (w *world) setFaults(make func() membus.Faults) {
	for i, h := range w.hubs {
		f := make() // each hub has its own
		f.Seed = uint64(i)
		h.SetFaults(f)
	}
}

func (w *world) published() int {
	n := 0
	for _, h := range w.hubs {
		n += h.Published()
	}
	return n
}

func TestConverge(t *testing.T) {
	for name, of := range map[string]shape{"line": line, "ring": ring, "star": star} {
		for _, n := range []int{3, 5} {
			t.Run(fmt.Sprintf("%s of %d", name, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, n, of, membus.Faults{Delay: 20 * time.Millisecond})
					w.start()
					defer w.stop()
					everybodyKnows(t, 5*time.Second, w.sites)
					v := w.sites[0].member.Views().Cluster(w.sites[n-1].name)
					own := w.sites[n-1].own()
					if got, want := v.Exports[0], own.Exports[3]; got.Name != want.Name || !got.Created.Equal(want.Created) || got.Servers[0] != want.Servers[0] {
						t.Errorf("got %+v, want %+v", got, want)
					}
					if v.Region != w.sites[n-1].name.String()+"-1" {
						t.Errorf("region %q", v.Region)
					}
					// A change is everywhere in much less than a second, without anybody asking.
					time.Sleep(20 * time.Second)
					w.sites[1].tell()
					everybodyKnows(t, 100*time.Millisecond+5*50*time.Millisecond+time.Duration(n)*20*time.Millisecond, w.sites)
				})
			})
		}
	}
}

// TestSteadyState counts what goes over the buses while nothing changes: one Head per member, interval and bus, and no Want.
func TestSteadyState(t *testing.T) {
	for name, of := range map[string]shape{"line": line, "ring": ring, "star": star} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const n = 5
				w := newWorld(t, n, of, membus.Faults{Delay: 10 * time.Millisecond})
				w.start()
				defer w.stop()
				everybodyKnows(t, 5*time.Second, w.sites)
				time.Sleep(time.Minute)
				before := w.published()
				const minutes = 3
				time.Sleep(minutes * time.Minute)
				clients := 0
				for _, s := range w.sites {
					clients += len(s.buses)
				}
				// Each Head goes out at most once on each connection: by its owner, or by who passes it on.
				heads := n * (minutes*60/10 + 1)
				if got := w.published() - before; got > heads*clients || got < heads-n {
					t.Errorf("%d messages for %d heads over %d connections", got, heads, clients)
				}
			})
		})
	}
}

func TestCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, line, membus.Faults{})
		begun := time.Now()
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		// Both told of themselves at 0.1 s and do so every 10 s; here is a gap.
		time.Sleep(32*time.Second - time.Since(begun))
		before := w.sites[0].member.Views().Cluster(w.sites[1].name)
		published := w.published()
		for range 50 {
			w.sites[1].tell()
			time.Sleep(time.Millisecond)
		}
		everybodyKnows(t, time.Second, w.sites)
		// One head, the gateways and each shard, on two buses.
		shards := make(map[int]bool)
		for _, e := range w.sites[1].own().Exports {
			shards[federation.ShardOf(e.Name.Namespace())] = true
		}
		if got := w.published() - published; len(shards) < 3 || got != 2*(2+len(shards)) {
			t.Errorf("%d messages for 50 changes within 50 ms (%d → %d)", got, before.Seq, w.sites[0].member.Views().Cluster(w.sites[1].name).Seq)
		}
		// Saying the same again is no change.
		published = w.published()
		for range 10 {
			if err := w.sites[1].member.SetOwn(w.sites[1].own()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		if got := w.published() - published; got > 4 {
			t.Errorf("%d messages for no change", got)
		}
	})
}

func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5, ring, membus.Faults{Delay: 10 * time.Millisecond})
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)

		// One link of a ring is nothing.
		w.hubs[1].SetUp("c0", false)
		w.sites[0].tell()
		everybodyKnows(t, 5*time.Second, w.sites)

		// Two links part {c1, c2} from {c3, c4, c0}.
		w.hubs[3].SetUp("c2", false)
		for _, s := range w.sites {
			s.tell()
		}
		time.Sleep(2 * time.Minute)
		for i, a := range w.sites {
			for j, b := range w.sites {
				together := i == j || (i == 1 || i == 2) == (j == 1 || j == 2)
				if i != j && a.knows(b) != together {
					t.Errorf("c%d knows c%d: %v, want %v (%+v)", i, j, !together, together, a.member.Views().Cluster(b.name).State())
				}
				if v := a.member.Views().Cluster(b.name); i != j && !together && v.Freshness != federation.Stale {
					t.Errorf("c%d holds c%d %s", i, j, v.Freshness)
				}
			}
		}
		w.hubs[1].SetUp("c0", true)
		w.hubs[3].SetUp("c2", true)
		everybodyKnows(t, 20*time.Second, w.sites)
	})
}

// TestSilentPartition heals without anybody noticing a broken connection: the broker only swallowed what went between two.
func TestSilentPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, star, membus.Faults{})
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		for _, h := range w.hubs {
			h.Cut("c0", "c1", true)
			h.Cut("c1", "c2", true)
		}
		for _, s := range w.sites {
			s.tell()
		}
		time.Sleep(10 * time.Minute)
		for _, h := range w.hubs {
			h.Cut("c0", "c1", false)
			h.Cut("c1", "c2", false)
		}
		everybodyKnows(t, 15*time.Second, w.sites)
	})
}

func TestRemovePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, star, membus.Faults{})
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		a, b := w.sites[0], w.sites[1]
		changed := a.member.Changed()
		if err := a.member.SetPeers([]federation.PeerSpec{w.sites[2].spec()}); err != nil {
			t.Fatal(err)
		}
		if a.member.Views().Cluster(b.name) != nil || len(a.member.Views().All()) != 1 {
			t.Fatal("the view outlived the call")
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was told")
		}
		time.Sleep(time.Minute)
		if a.member.Views().Cluster(b.name) != nil || !a.knows(w.sites[2]) {
			t.Error("it came back, or took another with it")
		}
		// Pinned to another key, it stays out.
		other := b.spec()
		other.RootFingerprint[0] ^= 1
		if err := a.member.SetPeers([]federation.PeerSpec{other}); err != nil {
			t.Fatal(err)
		}
		check := func() {
			t.Helper()
			if v := a.member.Views().Cluster(b.name); v.Freshness != federation.Waiting || v.Reason == "" || len(v.Exports) > 0 {
				t.Errorf("%+v", v)
			}
		}
		check()
		time.Sleep(time.Minute)
		check()
		// Pinned anew while it is known, it begins anew within the call.
		if err := a.member.SetPeers(a.peers); err != nil {
			t.Fatal(err)
		}
		everybodyKnows(t, 15*time.Second, w.sites)
		if err := a.member.SetPeers([]federation.PeerSpec{other}); err != nil {
			t.Fatal(err)
		}
		check()
		if err := a.member.SetPeers(a.peers); err != nil {
			t.Fatal(err)
		}
		everybodyKnows(t, 15*time.Second, w.sites)
	})
}

func TestRestart(t *testing.T) {
	t.Run("with disk", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 3, star, membus.Faults{})
			for _, s := range w.sites {
				s.dir = t.TempDir()
			}
			w.start()
			defer w.stop()
			everybodyKnows(t, 5*time.Second, w.sites)
			a := w.sites[0]
			before := a.member.Views().Cluster(w.sites[1].name)
			a.stop()
			a.start()
			synctest.Wait()
			// It knows what it knew, at once.
			after := a.member.Views().Cluster(w.sites[1].name)
			if after.Seq < before.Seq || !a.knows(w.sites[1]) {
				t.Fatalf("before %+v, after %+v", before, after)
			}
			a.tell()
			everybodyKnows(t, 5*time.Second, w.sites)
		})
	})
	t.Run("without disk", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 3, star, membus.Faults{})
			w.start()
			defer w.stop()
			everybodyKnows(t, 5*time.Second, w.sites)
			for _, s := range w.sites {
				s.stop()
				time.Sleep(time.Second)
				s.start()
				s.tell()
				everybodyKnows(t, 15*time.Second, w.sites)
			}
		})
	})
	t.Run("without disk, clock behind", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 3, star, membus.Faults{})
			w.start()
			defer w.stop()
			everybodyKnows(t, 5*time.Second, w.sites)
			a := w.sites[1]
			a.stop()
			a.now = func() time.Time { return time.Now().Add(-30 * time.Second) }
			a.start()
			a.tell()
			// It hears its own old head, which is above its number, and goes on from there.
			everybodyKnows(t, 15*time.Second, w.sites)
		})
	})
}

// TestFreshness lets the last word of a peer age; the loop wakes by itself, and tells who waits. (The default thresholds are in
// TestThresholds: a day takes a while even in virtual time.)
func TestFreshness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, line, membus.Faults{})
		for _, s := range w.sites {
			s.freshness = federation.Thresholds{Stale: time.Minute, Frozen: 5 * time.Minute, Expired: 10 * time.Minute}
		}
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		a, gone := w.sites[0], w.sites[2]
		gone.stop()
		issued := a.member.Views().Cluster(gone.name).Issued
		for _, step := range []struct {
			age  time.Duration
			want federation.Freshness
			told bool
		}{
			{59 * time.Second, federation.Fresh, false},
			{61 * time.Second, federation.Stale, true},
			{299 * time.Second, federation.Stale, false},
			{301 * time.Second, federation.Frozen, true},
			{599 * time.Second, federation.Frozen, false},
			{601 * time.Second, federation.Expired, true},
		} {
			time.Sleep(time.Until(issued.Add(step.age - 1500*time.Millisecond)))
			changed := a.member.Changed()
			time.Sleep(1500 * time.Millisecond)
			synctest.Wait()
			v := a.member.Views().Cluster(gone.name)
			if v.Freshness != step.want || v.Usable() != (step.want != federation.Expired) {
				t.Errorf("after %s: %s, want %s", step.age, v.Freshness, step.want)
			}
			if v.Freshness != federation.Fresh && v.Reason == "" {
				t.Errorf("%s without a reason", v.Freshness)
			}
			if _, err := versionIn(v); err != nil {
				t.Errorf("%s: %v", v.Freshness, err)
			}
			if step.told {
				select {
				case <-changed:
				default:
					t.Errorf("nobody was told of %s", step.want)
				}
			}
		}
		gone.start()
		everybodyKnows(t, 15*time.Second, w.sites)
	})
}

func TestGoneForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, star, membus.Faults{})
		for _, s := range w.sites {
			s.dir = t.TempDir()
		}
		w.start()
		defer w.stop()
		everybodyKnows(t, 5*time.Second, w.sites)
		w.sites[0].stop()
		w.sites[1].stop()
		before := w.published()
		time.Sleep(time.Hour)
		// Who is left goes on telling, and asks once a minute.
		if got := w.published() - before; got > 2*(360+90) {
			t.Errorf("%d messages from one lonely member in an hour", got)
		}
		w.sites[2].tell()
		w.sites[0].start()
		w.sites[1].start()
		everybodyKnows(t, 15*time.Second, w.sites)
	})
}
