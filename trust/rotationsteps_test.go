package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

// shape is what is to be seen of an authority's roots: "first", "second", … in the order of their making, the one in use first.
type shape struct {
	names map[string]string
}

func (s *shape) of(a *Authority) string {
	if s.names == nil {
		s.names = map[string]string{}
	}
	all := []string{"first", "second", "third", "fourth", "fifth"}
	var out []string
	for _, c := range a.Roots() {
		key := fmt.Sprintf("%x", c.SerialNumber)
		if s.names[key] == "" {
			s.names[key] = all[len(s.names)]
		}
		out = append(out, s.names[key])
	}
	return fmt.Sprintf("%s: %s", a.Rotation().Phase, strings.Join(out, " "))
}

func TestRotationByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var held []string
		a := openAuthority(t, AuthorityConfig{Dir: t.TempDir(), Holds: func(*x509.Certificate) []string { return held }})
		defer run(t, a.Run)()
		var seen shape
		steps := []struct {
			name string
			act  func() error
			want string
			err  error
		}{
			{"publish without a root", a.Publish, "idle: first", ErrWrongStep},
			{"activate without a root", func() error { return a.Activate(true) }, "idle: first", ErrWrongStep},
			{"abort nothing", a.Abort, "idle: first", ErrWrongStep},
			{"prepare", a.Prepare, "prepared: first", nil},
			{"prepare again", a.Prepare, "prepared: first", ErrWrongStep},
			{"activate what nobody knows", func() error { return a.Activate(true) }, "prepared: first", ErrWrongStep},
			{"abort", a.Abort, "idle: first", nil},
			{"prepare anew", a.Prepare, "prepared: first", nil},
			{"publish", a.Publish, "published: first second", nil},
			{"abort what is published", a.Abort, "idle: first", nil},
			{"prepare once more", a.Prepare, "prepared: first", nil},
			{"publish once more", a.Publish, "published: first third", nil},
			{"activate", func() error { return a.Activate(false) }, "activated: third first", nil},
			{"abort too late", a.Abort, "activated: third first", ErrWrongStep},
			{"the next rotation", a.Prepare, "prepared: third first", nil},
			{"the next rotation, published", a.Publish, "published: third fourth first", nil},
			{"the next rotation, too early", func() error { return a.Activate(true) }, "published: third fourth first", ErrWrongStep},
			{"the next rotation, dropped", func() error {
				time.Sleep(time.Minute)
				err := a.Abort()
				if r := a.Rotation(); r.Phase != RotationActivated || time.Since(r.Since) < time.Minute {
					t.Errorf("activated since %s, which was the abort of the rotation after that", r.Since)
				}
				return err
			}, "activated: third first", nil},
			{"the next rotation again", func() error { return errors.Join(a.Prepare(), a.Publish()) }, "published: third fifth first", nil},
			{"the first retires", func() error { time.Sleep(defaultSVIDLifetime + retireMargin + time.Second); return nil }, "published: third fifth", nil},
			{"the next rotation, aborted", a.Abort, "idle: third", nil},
		}
		for _, step := range steps {
			before := issueTo(t, a, gatewayA)
			if err := step.act(); !errors.Is(err, step.err) {
				t.Fatalf("%s: %v, want %v", step.name, err, step.err)
			}
			synctest.Wait()
			if got := seen.of(a); got != step.want {
				t.Fatalf("%s: %q, want %q", step.name, got, step.want)
			}
			for _, chain := range [][]*x509.Certificate{before, issueTo(t, a, gatewayA)} {
				if err := verifyWith(a.Roots(), chain); err != nil && time.Now().Before(chain[0].NotAfter) {
					t.Errorf("%s: %v", step.name, err)
				}
			}
		}
		held = []string{"cluster us has not heard"}
		if err := errors.Join(a.Prepare(), a.Publish()); err != nil {
			t.Fatal(err)
		}
		err := a.Activate(false)
		if h, ok := errors.AsType[*HeldError](err); !ok || !slices.Equal(h.Holds, held) {
			t.Errorf("%v names nobody", err)
		}
		if err := a.Activate(true); err != nil || a.Rotation().Phase != RotationActivated {
			t.Errorf("by force: %v", err)
		}
	})
}

// What an operator has dropped, the schedule does not bring back at once.
func TestAbortPausesTheSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a := openAuthority(t, AuthorityConfig{Dir: dir})
		stop := run(t, a.Run)
		time.Sleep(46 * 24 * time.Hour)
		if r := a.Rotation(); r.Phase != RotationPublished || !r.Automatic {
			t.Fatalf("%+v", r)
		}
		if err := a.Abort(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Hour)
		stop()
		a = openAuthority(t, AuthorityConfig{Dir: dir})
		defer run(t, a.Run)()
		if r := a.Rotation(); r.Phase != RotationIdle {
			t.Errorf("%s before the pause is over", r.Phase)
		}
		time.Sleep(10 * time.Hour)
		if r := a.Rotation(); r.Phase != RotationPublished {
			t.Errorf("%s after it", r.Phase)
		}
	})
}

// The schedule waits for whom it must, and no longer than the old root has time.
func TestScheduleWaitsForAcknowledgements(t *testing.T) {
	for name, heard := range map[string]time.Duration{"in time": 75 * 24 * time.Hour, "never": 1000 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var log logLines
				a := openAuthority(t, AuthorityConfig{Dir: t.TempDir(), Log: log.logger(), Holds: func(*x509.Certificate) []string {
					if time.Since(start) < heard {
						return []string{"cluster us"}
					}
					return nil
				}})
				defer run(t, a.Run)()
				first := a.Roots()[0]
				for a.Roots()[0].Equal(first) {
					time.Sleep(time.Hour)
					chain := issueTo(t, a, gatewayA)
					if left := time.Until(chain[0].NotAfter); left != time.Hour {
						t.Fatalf("an SVID for %v", left)
					}
				}
				want := min(heard, 89*24*time.Hour) // the last call: half of an issuing CA's life before the end
				if took := time.Since(start); took < want || took > want+time.Hour {
					t.Errorf("in use after %v, want %v", took, want)
				}
				if n := log.count("next root not put to use yet"); n != 1 {
					t.Errorf("told %d times that it waits, want once", n)
				}
				if forced := log.count("not everybody has it") == 1; forced != (name == "never") {
					t.Errorf("told that it went on without: %v", forced)
				}
			})
		})
	}
}

var errCut = errors.New("power cut")

// The process may die before and after each change on disk. What it leaves opens, has forgotten nothing that somebody trusts or was
// told of, and the rotation goes on from there, by hand or by the schedule.
func TestRotationCutAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		walk := func(a *Authority) error {
			for _, step := range []func() error{
				a.Prepare, a.Abort, a.Prepare, a.Publish, a.Abort, a.Prepare, a.Publish,
				func() error { return a.Activate(false) },
				func() error { time.Sleep(2 * time.Hour); return a.maintain(time.Now()) },
			} {
				if err := step(); err != nil {
					return err
				}
			}
			return nil
		}
		total := 0
		for at := 0; at == 0 || at <= total; at++ {
			dir, n, died := t.TempDir(), 0, ""
			cfg := AuthorityConfig{Dir: dir, TrustDomain: domainA}
			openAuthority(t, cfg)
			cfg.cut = func(step string) error {
				if n++; at > 0 && n == at {
					died = step
				}
				if died != "" {
					return errCut // nothing more happens
				}
				return nil
			}
			a := openAuthority(t, cfg)
			n = 0
			before := issueTo(t, a, gatewayA)
			err := walk(a)
			if at == 0 {
				if total = n; err != nil || total < 20 {
					t.Fatalf("%d changes on disk: %v", total, err)
				}
				continue
			}
			last := a.Roots() // of whom peers may have been told, and by whom they may have been shown SVIDs
			after := issueTo(t, a, gatewayA)
			cfg.cut = nil
			again, err := OpenAuthority(cfg)
			if err != nil {
				t.Fatalf("died %s: %v", died, err)
			}
			for what, chain := range map[string][]*x509.Certificate{"before": before, "after": after, "again": issueTo(t, again, gatewayA)} {
				if !time.Now().Before(chain[0].NotAfter) {
					continue
				}
				if err = verifyWith(again.Roots(), chain); err != nil {
					t.Errorf("died %s: SVID of %s is refused by who hears the new process: %v", died, what, err)
				}
				if err = verifyWith(last, chain); err != nil {
					t.Errorf("died %s: SVID of %s is refused by who heard the old process: %v", died, what, err)
				}
			}
			// On it goes.
			for range 5 {
				switch again.Rotation().Phase {
				case RotationIdle:
					err = again.Prepare()
				case RotationPrepared:
					err = again.Publish()
				case RotationPublished:
					err = again.Activate(false)
				case RotationActivated:
					time.Sleep(2 * time.Hour)
					err = again.maintain(time.Now())
				}
				if err != nil {
					t.Fatalf("died %s: goes on: %v", died, err)
				}
			}
			if n := len(again.Roots()); n > 3 {
				t.Errorf("died %s: %d roots", died, n)
			}
		}
	})
}

// Notes that are lost, damaged or of another rotation cost time, never trust.
func TestRotationNotesLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, damage := range map[string]func(path string) error{
			"lost":    os.Remove,
			"damaged": func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
			"of another rotation": func(path string) error {
				return os.WriteFile(path, []byte(`{"retires":"2000-01-01T00:00:00Z","retires_of":"00"}`), 0o600)
			},
		} {
			dir := t.TempDir()
			a := openAuthority(t, AuthorityConfig{Dir: dir})
			if err := errors.Join(a.Prepare(), a.Publish(), a.Activate(false)); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(dir, rotationFile)); err != nil {
				t.Fatal(err)
			}
			a = openAuthority(t, AuthorityConfig{Dir: dir})
			stop := run(t, a.Run)
			time.Sleep(time.Hour)
			if n := len(a.Roots()); n != 2 {
				t.Errorf("%s: %d roots an hour later, want 2", name, n)
			}
			time.Sleep(time.Hour)
			if n := len(a.Roots()); n != 1 {
				t.Errorf("%s: %d roots two hours later, want 1", name, n)
			}
			stop()
		}
	})
}

// program is one that has an SVID, and bundles that it was told of some time ago.
type program struct {
	id      spiffeid.ID
	chain   []*x509.Certificate
	bundles *Bundles
	heard   map[spiffeid.TrustDomain]time.Time
}

// rotationWorld is several domains whose roots change while their programs speak with each other. Time is drawn, too.
type rotationWorld struct {
	t        *rapid.T
	now      time.Time
	dirs     map[spiffeid.TrustDomain]string
	domains  map[spiffeid.TrustDomain]*Authority
	order    []spiffeid.TrustDomain
	programs []*program
	good     map[[2]any]bool // chain and trust that verify, until the chain ends
	cut      int             // changes on disk until the process dies; 0: it doesn't
}

func (w *rotationWorld) open(td spiffeid.TrustDomain) {
	a, err := OpenAuthority(AuthorityConfig{
		TrustDomain: td, Dir: w.dirs[td], Now: func() time.Time { return w.now },
		Holds: func(next *x509.Certificate) []string { return w.lack(td, next) },
		cut: func(string) error {
			if w.cut == 0 {
				return nil
			}
			if w.cut--; w.cut == 0 {
				w.cut = -1
			}
			if w.cut < 0 {
				return errCut
			}
			return nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.domains[td] = a
}

// lack are the programs that have not got that root.
func (w *rotationWorld) lack(td spiffeid.TrustDomain, root *x509.Certificate) []string {
	var out []string
	for _, p := range w.programs {
		if b, _ := p.bundles.Get(td); !slices.ContainsFunc(b.Authorities, root.Equal) {
			out = append(out, p.id.String())
		}
	}
	return out
}

func (w *rotationWorld) tell(p *program, td spiffeid.TrustDomain) {
	p.bundles.Set(td, Bundle{Authorities: w.domains[td].Roots()})
	p.heard[td] = w.now
}

func (w *rotationWorld) renew(p *program) {
	_, csr, err := NewRequest()
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.domains[p.id.TrustDomain()].Issue(csr, p.id)
	if err != nil {
		w.t.Fatal(err)
	}
	p.chain = chain
}

// settle does what programs do by themselves: they renew at half-life, and hear of each change within half a day.
func (w *rotationWorld) settle() {
	for _, p := range w.programs {
		if w.now.After(p.chain[0].NotAfter.Add(-defaultSVIDLifetime / 2)) {
			w.renew(p)
		}
		for _, td := range w.order {
			if w.now.Sub(p.heard[td]) > 12*time.Hour {
				w.tell(p, td)
			}
		}
	}
}

// handshakes: everybody speaks with everybody.
func (w *rotationWorld) handshakes(after string) {
	for _, from := range w.programs {
		for _, to := range w.programs {
			trusted := to.bundles.load()[from.id.TrustDomain()]
			key := [2]any{from.chain[0], trusted}
			if w.good[key] && w.now.Before(from.chain[0].NotAfter) {
				continue
			}
			if _, err := to.bundles.Verify(from.chain, w.now); err != nil {
				w.t.Fatalf("after %s: %s refuses %s: %v", after, to.id, from.id, err)
			}
			w.good[key] = true
		}
	}
}

// memoryDir is a folder on a file system in memory where there is one: thousands of syncs take long elsewhere.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "isthmus-trust-") //nolint:usetesting // t.TempDir is on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Whatever operators do and wherever processes die, no handshake between programs that hear of changes within half a day fails.
func TestRotationProperty(t *testing.T) {
	base := memoryDir(t)
	runs, rotated, died := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		w := &rotationWorld{
			t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
			dirs: map[spiffeid.TrustDomain]string{}, domains: map[spiffeid.TrustDomain]*Authority{}, good: map[[2]any]bool{},
			order: []spiffeid.TrustDomain{domainA, domainB},
		}
		for _, td := range w.order {
			w.dirs[td] = filepath.Join(base, fmt.Sprint(runs), td.Name())
			w.open(td)
		}
		for _, td := range w.order {
			for i := range 2 {
				p := &program{id: spiffeid.RequireFromPathf(td, "/%d", i), bundles: NewBundles(), heard: map[spiffeid.TrustDomain]time.Time{}}
				for _, of := range w.order {
					w.tell(p, of)
				}
				w.renew(p)
				w.programs = append(w.programs, p)
			}
		}
		for range rapid.IntRange(30, 60).Draw(t, "steps") {
			td := rapid.SampledFrom(w.order).Draw(t, "domain")
			a := w.domains[td]
			step := rapid.SampledFrom([]string{"wait", "wait", "tell", "tell", "onward", "onward", "onward", "onward", "abort", "die"}).Draw(t, "step")
			var err error
			switch step {
			case "wait": // less than half of a life, or a program could not renew in time
				w.now = w.now.Add(time.Duration(rapid.IntRange(600, 1700).Draw(t, "seconds")) * time.Second)
				err = a.maintain(w.now)
			case "tell":
				whom := rapid.IntRange(0, 2*len(w.programs)).Draw(t, "whom")
				for i, p := range w.programs {
					if whom == i || whom >= len(w.programs) { // one, or all
						w.tell(p, td)
					}
				}
			case "onward":
				switch a.Rotation().Phase {
				case RotationIdle, RotationActivated:
					err = a.Prepare()
				case RotationPrepared:
					err = a.Publish()
				case RotationPublished:
					if err = a.Activate(false); err == nil {
						rotated++
					}
				}
			case "abort":
				err = a.Abort()
			case "die":
				w.cut = rapid.IntRange(1, 8).Draw(t, "changes until then")
			}
			if _, held := errors.AsType[*HeldError](err); err != nil && !held && !errors.Is(err, ErrWrongStep) && !errors.Is(err, errCut) {
				t.Fatalf("%s: %v", step, err)
			}
			if w.cut < 0 { // somebody died
				w.cut = 0
				died++
				for _, td := range w.order {
					w.open(td)
				}
			}
			w.settle()
			w.handshakes(step)
		}
	})
	least := 10
	if testing.Short() { // rapid draws a fifth
		least = 1
	}
	if rotated < least || died < least {
		t.Errorf("%d rotations and %d deaths: the test has lost its bite", rotated, died)
	}
	t.Logf("%d rotations, %d deaths", rotated, died)
}
