package federation_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/federation/membus"
)

// TestHostileBroker: whatever a broker does to the records, each member holds one consistent cut, and never an older one than
// before; when it stops, all converge.
func TestHostileBroker(t *testing.T) {
	old := func() func(from, to string, m federation.Message) (federation.Message, bool) {
		kept := make(map[string][]federation.Message)
		n := 0
		return func(_, _ string, m federation.Message) (federation.Message, bool) {
			n++
			kept[m.Subject] = append(kept[m.Subject], m)
			if of := kept[m.Subject]; n%3 == 0 {
				return of[n%len(of)], true // an old record of the same kind, in place of the new one
			}
			return m, true
		}
	}
	mixed := func() func(from, to string, m federation.Message) (federation.Message, bool) {
		var kept []federation.Message
		n := 0
		return func(_, _ string, m federation.Message) (federation.Message, bool) {
			n++
			kept = append(kept, m)
			if n%2 == 0 {
				m = federation.Message{Subject: m.Subject, Data: kept[(n*7919)%len(kept)].Data} // any record under any subject
			}
			return m, true
		}
	}
	tamper := func() func(from, to string, m federation.Message) (federation.Message, bool) {
		random := rand.New(rand.NewPCG(1, 1))
		return func(_, _ string, m federation.Message) (federation.Message, bool) {
			if random.IntN(3) == 0 {
				m.Data = slices.Clone(m.Data)
				m.Data[random.IntN(len(m.Data))] ^= byte(1 << random.IntN(8))
			}
			return m, true
		}
	}
	for name, faults := range map[string]func() membus.Faults{
		"drops":      func() membus.Faults { return membus.Faults{Drop: 0.3} },
		"duplicates": func() membus.Faults { return membus.Faults{Duplicate: 0.9, Delay: time.Millisecond} },
		"reorders":   func() membus.Faults { return membus.Faults{Jitter: 2 * time.Second} },
		"delays":     func() membus.Faults { return membus.Faults{Delay: 20 * time.Second} },
		"replays":    func() membus.Faults { return membus.Faults{Tamper: old()} },
		"mixes":      func() membus.Faults { return membus.Faults{Tamper: mixed()} },
		"tampers":    func() membus.Faults { return membus.Faults{Tamper: tamper()} },
		"all of it": func() membus.Faults {
			return membus.Faults{Drop: 0.3, Duplicate: 0.3, Jitter: time.Second, Tamper: tamper()}
		},
		"tiny queue": func() membus.Faults { return membus.Faults{Queue: 3} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3, ring, membus.Faults{})
				w.setFaults(faults)
				w.start()
				defer w.stop()
				last := make(map[string]*federation.View)
				look := func() {
					for _, a := range w.sites {
						for _, v := range a.member.Views().All() {
							if _, err := versionIn(v); err != nil {
								t.Fatalf("%s holds a mix: %v", a.name, err)
							}
							key := a.name.String() + v.Cluster.String()
							if o := last[key]; o != nil && (v.Epoch < o.Epoch || v.Epoch == o.Epoch && v.Seq < o.Seq) {
								t.Fatalf("%s went back on %s: (%d, %d) → (%d, %d)", a.name, v.Cluster, o.Epoch, o.Seq, v.Epoch, v.Seq)
							}
							if v.Quarantined {
								t.Fatalf("%s quarantined %s: %s", a.name, v.Cluster, v.Reason)
							}
							last[key] = v
						}
					}
				}
				for i := range 24 {
					w.sites[i%3].tell()
					for range 5 {
						time.Sleep(300 * time.Millisecond)
						synctest.Wait()
						look()
					}
				}
				moved := 0
				for _, v := range last {
					if v.Seq > 0 {
						moved++
					}
				}
				if moved < 3 {
					t.Errorf("only %d of 6 views came into being meanwhile", moved)
				}
				w.setFaults(func() membus.Faults { return membus.Faults{} })
				everybodyKnows(t, time.Minute, w.sites)
				look()
			})
		})
	}
}
