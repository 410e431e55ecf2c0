package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/wan"
)

// fault is one way to break something, ready to be done.
type fault struct {
	kind string
	what string // in words, with who suffers
	// kills is the cluster whose sidecars lose what they have not written; empty: none.
	kills string
	// links are made worse for as long as the fault lasts.
	links []worse
	// inject breaks it; nil: that is done by links, or by during.
	inject func(context.Context, *lab.Playground) error
	// during goes on until its context ends; an error that comes of that is none.
	during func(context.Context, *lab.Playground) error
	// undo takes back what starting dead programs again does not.
	undo func(context.Context, *lab.Playground) error
	// restore is undo by a program that may be dead: it is done when all run again.
	restore func(context.Context, *lab.Playground) error
}

// worse is a direction of the WAN, made so.
type worse struct {
	from, to string
	change   func(*wan.Link)
}

// scene is what a round's faults are drawn for: which cluster is the victim. What stays whole is enough to answer: the other cluster, the
// caller's way to it, and one gateway of the caller's.
type scene struct {
	luck   *rand.Rand
	victim string
	other  string
	which  string // of two gateways, wherever one of them is broken
	lasts  time.Duration
}

// kind is one kind of faults.
type kind struct {
	name string
	wan  bool // it needs one
	draw func(scene) fault
}

// kinds are all there are. Their names are in reports and in docs/failover.md.
var kinds = append(append(programKinds(), configKinds()...), wanKinds()...)

// known returns the kinds that a runtime has, in their order.
func known(runtime lab.Runtime) (out []kind) {
	for _, k := range kinds {
		if !k.wan || runtime == lab.Netns {
			out = append(out, k)
		}
	}
	return out
}

func (s scene) pick(from ...string) string { return from[s.luck.IntN(len(from))] }

func programKinds() []kind {
	kills := func(name string, target func(scene) string, loses bool) kind {
		return kind{name: name, draw: func(s scene) fault {
			at := target(s)
			f := fault{what: name + ": " + at, inject: func(ctx context.Context, pg *lab.Playground) error {
				_, err := pg.Break(ctx, at)
				return err
			}}
			if loses {
				f.kills = s.victim
			}
			return f
		}}
	}
	stops := func(name string, target func(scene) string) kind {
		return kind{name: name, draw: func(s scene) fault {
			at := target(s)
			return fault{what: name + ": " + at, inject: func(ctx context.Context, pg *lab.Playground) error {
				_, err := pg.Stop(ctx, grace, at)
				return err
			}}
		}}
	}
	pauses := func(name string, target func(scene) string) kind {
		return kind{name: name, draw: func(s scene) fault {
			at := target(s)
			resume := func(_ context.Context, pg *lab.Playground) error {
				_, err := pg.Resume(at)
				return err
			}
			return fault{
				what: name + ": " + at,
				inject: func(_ context.Context, pg *lab.Playground) error {
					_, err := pg.Pause(at)
					return err
				},
				// In time, and not when all is over: the other fault may wait for one that is paused.
				during: func(ctx context.Context, pg *lab.Playground) error {
					<-ctx.Done()
					return resume(ctx, pg)
				},
				undo: resume,
			}
		}}
	}
	copied := func(half string) func(scene) string {
		return func(s scene) string { return s.victim + "/checkout-0" + half }
	}
	gateway := func(s scene) string { return s.victim + "/" + s.which }
	ours := func(s scene) string { return home + "/" + s.which }
	control := func(s scene) string { return s.pick(s.victim, home, s.other) + "/control" }
	return []kind{
		kills("kill application", copied("-app"), false),
		kills("kill sidecar", copied("-sidecar"), true),
		kills("kill gateway", gateway, false),
		kills("kill caller's gateway", ours, false),
		kills("kill control", func(s scene) string { return s.victim + "/control" }, false),
		kills("kill caller's control", func(scene) string { return home + "/control" }, false),
		kills("kill other's control", func(s scene) string { return s.other + "/control" }, false),
		kills("kill node proxy", func(s scene) string { return s.victim + "/node-0" }, false),
		kills("kill cluster", func(s scene) string { return s.victim }, true),
		stops("stop gateway", gateway),
		stops("stop caller's gateway", ours),
		stops("stop sidecar", copied("-sidecar")),
		pauses("pause application", copied("-app")),
		pauses("pause sidecar", copied("-sidecar")),
		pauses("pause gateway", gateway),
		pauses("pause caller's gateway", ours),
		pauses("pause control", control),
		{name: "restart control", draw: func(s scene) fault {
			at := control(s)
			return fault{what: "restart control: " + at, inject: func(ctx context.Context, pg *lab.Playground) error { return restart(ctx, pg, at) }}
		}},
		{name: "roll gateways", draw: func(s scene) fault {
			// The one that may be dead already comes first: the other is all there is.
			first, second := s.which, "gateway-0"
			if first == second {
				second = "gateway-1"
			}
			at := s.pick(s.victim, home)
			return fault{
				what: fmt.Sprintf("roll gateways: %s/%s, then %s", at, first, second),
				inject: func(ctx context.Context, pg *lab.Playground) error {
					if err := restart(ctx, pg, at+"/"+first); err != nil {
						return err
					}
					return restart(ctx, pg, at+"/"+second)
				},
			}
		}},
	}
}

// restart ends a program as an operator would, and starts it again.
func restart(ctx context.Context, pg *lab.Playground, target string) error {
	if _, err := pg.Stop(ctx, grace, target); err != nil {
		return err
	}
	_, err := pg.Heal(ctx, target)
	return err
}
