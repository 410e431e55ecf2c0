package chaos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/internal/lab"
)

// configKinds change what an owner says, and take it back.
func configKinds() []kind {
	return []kind{
		{name: "remove export", draw: func(s scene) fault {
			var had []byte
			path := func(pg *lab.Playground) string {
				return filepath.Join(pg.ManifestsOf(s.victim), "checkout-export.yaml")
			}
			return fault{
				what: "remove export: of " + s.victim,
				inject: func(_ context.Context, pg *lab.Playground) (err error) {
					if had, err = os.ReadFile(path(pg)); err != nil {
						return err
					}
					return os.Remove(path(pg))
				},
				undo: func(_ context.Context, pg *lab.Playground) error {
					if had == nil {
						return nil
					}
					return atomicfile.Write(path(pg), had, manifestMode)
				},
			}
		}},
		{name: "change access", draw: func(s scene) fault {
			path := func(pg *lab.Playground) string { return filepath.Join(pg.ManifestsOf(s.victim), "access.yaml") }
			put := func(pg *lab.Playground, rule string) error {
				return atomicfile.Write(path(pg), fmt.Appendf(nil, accessPolicy, home, rule), manifestMode)
			}
			return fault{
				what:   "change access: to " + s.victim + " (a policy is applied, changed, removed)",
				inject: func(_ context.Context, pg *lab.Playground) error { return put(pg, "first") },
				during: func(ctx context.Context, pg *lab.Playground) error {
					if err := sleep(ctx, s.lasts/2); err != nil {
						return err
					}
					return put(pg, "second")
				},
				undo: func(_ context.Context, pg *lab.Playground) error { return removed(path(pg)) },
			}
		}},
		{name: "change failover", draw: func(s scene) fault {
			order := []string{s.other, s.victim}
			return fault{
				what:   fmt.Sprintf("change failover: %s first, then removed", order[0]),
				inject: func(_ context.Context, pg *lab.Playground) error { return prefer(pg, order) },
				during: func(ctx context.Context, pg *lab.Playground) error {
					if err := sleep(ctx, s.lasts/2); err != nil {
						return err
					}
					return removed(failoverFile(pg))
				},
			}
		}},
		{name: "drain", draw: func(s scene) fault {
			// As an operator does: one service, or the whole cluster; slowly, or at once.
			r := admin.DrainRequest{Service: s.pick("", service), Over: time.Duration(s.luck.IntN(2)) * time.Second}
			what := map[string]string{"": "all", service: service}[r.Service]
			return fault{
				what: fmt.Sprintf("drain: %s of %s, over %s", what, s.victim, r.Over),
				inject: func(ctx context.Context, pg *lab.Playground) error {
					return mayFail(ctx, func(ctx context.Context) error {
						_, err := admin.NewClient(pg.SocketOf(s.victim)).Drain(ctx, r)
						return err
					})
				},
				restore: func(ctx context.Context, pg *lab.Playground) error {
					_, err := admin.NewClient(pg.SocketOf(s.victim)).Undrain(ctx, r.Service, false)
					return unless(err, http.StatusNotFound)
				},
			}
		}},
		{name: "drill", draw: func(s scene) fault {
			r := admin.DrillRequest{Service: service, For: s.lasts + time.Second, How: s.pick(admin.DrillRefuse, admin.DrillSilent)}
			return fault{
				what: fmt.Sprintf("drill: %s of %s (%s)", service, s.victim, r.How),
				inject: func(ctx context.Context, pg *lab.Playground) error {
					return mayFail(ctx, func(ctx context.Context) error {
						_, err := admin.NewClient(pg.SocketOf(s.victim)).BeginDrill(ctx, r)
						return err
					})
				},
				restore: func(ctx context.Context, pg *lab.Playground) error {
					// All that there are: a control that was paused may have begun one when nobody waited for it any more.
					client := admin.NewClient(pg.SocketOf(s.victim))
					drills, err := client.Drills(ctx)
					for _, d := range drills {
						if d.Ended.IsZero() {
							_, e := client.EndDrill(ctx, d.ID)
							err = errors.Join(err, unless(e, http.StatusNotFound))
						}
					}
					return err
				},
			}
		}},
		{name: "rotate trust", draw: func(s scene) fault {
			of := s.pick(s.victim, home, s.other)
			return fault{what: "rotate trust: of " + of, during: func(ctx context.Context, pg *lab.Playground) error { return rotate(ctx, pg, of) }}
		}},
	}
}

// mayFail asks a control that another fault may keep from answering.
func mayFail(ctx context.Context, ask func(context.Context) error) error {
	patient, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = ask(patient)
	return ctx.Err()
}

// unless passes an error of a control on, but one with that status.
func unless(err error, status int) error {
	if e, ok := errors.AsType[*admin.Error](err); ok && e.Status == status {
		return nil
	}
	return err
}

const manifestMode = 0o644

const accessPolicy = `apiVersion: isthmus.dev/v1alpha1
kind: AccessPolicy
metadata: {namespace: shop, name: callers}
spec:
  selector: {matchLabels: {app: checkout}}
  rules:
  - from: [{clusters: [%s], namespaces: [shop], serviceAccounts: [web]}]
    name: %s
`

const failoverPolicy = `apiVersion: isthmus.dev/v1alpha1
kind: FailoverPolicy
metadata: {namespace: shop, name: checkout}
spec:
  targetRefs:
  - {group: multicluster.x-k8s.io, kind: ServiceImport, name: checkout}
  tiers:
`

func failoverFile(pg *lab.Playground) string {
	return filepath.Join(pg.ManifestsOf(home), "checkout-failover.yaml")
}

// prefer has the caller's cluster ask other clusters in that order, or evenly.
func prefer(pg *lab.Playground, order []string) error {
	text := []byte(failoverPolicy)
	for _, c := range order {
		if c == evenly {
			text = append(text, "  - {name: evenly, match: {}, weights: {us: 50, ap: 50}}\n"...)
			continue
		}
		text = fmt.Appendf(text, "  - {name: %[1]s, match: {cluster: %[1]s}}\n", c)
	}
	return atomicfile.Write(failoverFile(pg), text, manifestMode)
}

// evenly stands for both clusters, with half each.
const evenly = "evenly"

func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// rotate takes the next step of a rotation of the root, and so far as the others follow, the one after it. A control that is dead, or an other
// fault keeps from answering, takes none.
func rotate(ctx context.Context, pg *lab.Playground, of string) error {
	client := admin.NewClient(pg.SocketOf(of))
	for {
		t, err := client.Trust(ctx)
		if err == nil {
			step := "start"
			switch t.Rotation.Phase {
			case "prepared":
				step = "publish"
			case "published":
				step = "activate"
			}
			_, err = client.Rotate(ctx, admin.RotationRequest{Step: step})
			if err != nil && step == "activate" && ctx.Err() == nil && len(t.Rotation.Holds) == 0 {
				_, _ = client.Rotate(ctx, admin.RotationRequest{Step: "abort"}) // an earlier root lives still: this one goes again
			}
		}
		if e := sleep(ctx, 200*time.Millisecond); e != nil {
			return e
		}
		if err == nil && t.Rotation.Phase == "published" {
			return nil
		}
	}
}
