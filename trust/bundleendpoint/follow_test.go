package bundleendpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
)

// endpoint is a server of somebody else's, in virtual time.
type endpoint struct {
	mu    sync.Mutex
	says  []byte      // guarded by mu
	err   error       // guarded by mu
	asked []time.Time // guarded by mu
}

func (e *endpoint) say(b []byte, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.says, e.err = b, err
}

func (e *endpoint) fetch(context.Context, Endpoint, *trust.Bundles) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, time.Now())
	return e.says, e.err
}

// times returns how often it was asked since it was asked for that last.
func (e *endpoint) times() (n int, pauses []time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := 1; i < len(e.asked); i++ {
		pauses = append(pauses, e.asked[i].Sub(e.asked[i-1]))
	}
	n = len(e.asked)
	e.asked = nil
	return n, pauses
}

// edited returns a document with other numbers.
func edited(t *testing.T, doc []byte, edit map[string]any) []byte {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal(doc, &all); err != nil {
		t.Fatal(err)
	}
	for k, v := range edit {
		if all[k] = v; v == nil {
			delete(all, k)
		}
	}
	out, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var web = Endpoint{URL: "https://theirs.test/", Profile: HTTPSWeb}

// TestOrder: a bundle never goes back, and one number never means two things; also over a restart, and for who is removed and comes again.
func TestOrder(t *testing.T) {
	them := newDomain(t, theirs)
	docs := map[uint64][]byte{}
	for _, n := range []uint64{5, 6, 9} {
		them.rotate(n)
		docs[n] = them.doc()
	}
	unnumbered := func(n uint64) []byte { return edited(t, docs[n], map[string]any{"spiffe_sequence": nil}) }
	synctest.Test(t, func(t *testing.T) {
		e, store, logs := new(endpoint), newMemStore(), new(logLines)
		run := func(domains ...Domain) (f *Follower, stop func()) {
			f, err := NewFollower(FollowerConfig{Store: store, Fetch: e.fetch, Log: slog.New(slog.NewTextHandler(logs, nil))})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- f.Run(ctx) }()
			f.Set(domains)
			return f, func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
		d := Domain{Name: theirs, Endpoint: web}
		e.say(docs[6], nil)
		f, stop := run(d)
		state := func(what string, want Freshness, sequence uint64, reason string) {
			t.Helper()
			synctest.Wait()
			s := f.States()[0]
			if s.Freshness != want || s.Sequence != sequence || !strings.Contains(s.Reason, reason) || reason == "" && s.Reason != "" {
				t.Errorf("%s: %s %d %q, want %s %d %q", what, s.Freshness, s.Sequence, s.Reason, want, sequence, reason)
			}
		}
		tell := func(doc []byte) {
			e.say(doc, nil)
			time.Sleep(10 * time.Minute)
		}
		state("first", Fresh, 6, "")
		tell(docs[5])
		state("older", Failed, 6, "sequence 5, after 6")
		tell(edited(t, docs[9], map[string]any{"spiffe_sequence": 6}))
		state("other keys under the same number", Failed, 6, "other keys under the same sequence 6")
		tell(unnumbered(9))
		state("without a number", Failed, 6, "no sequence")
		tell([]byte(`{"keys":[]}`))
		state("no keys", Failed, 6, "no X.509 authority")
		tell([]byte(`{"keys":[],"keys":[]}`))
		state("a name twice", Failed, 6, "comes twice")
		tell(docs[6])
		state("the same again", Fresh, 6, "")
		tell(edited(t, docs[6], map[string]any{"spiffe_sequence": 7}))
		state("the same keys under a higher number", Fresh, 7, "")
		tell(docs[9])
		state("newer", Fresh, 9, "")

		stop()
		e.say(nil, errors.New("away"))
		f, stop = run(d)
		state("after a restart", Stale, 9, "away")
		if n := len(f.States()[0].Bundle.Authorities); n == 0 {
			t.Error("the bundle was forgotten")
		}
		e.say(docs[6], nil)
		time.Sleep(10 * time.Minute)
		state("older, after a restart", Failed, 9, "sequence 6, after 9")
		f.Set(nil)
		if len(f.States()) != 0 {
			t.Error("a removed domain is known")
		}
		f.Set([]Domain{d})
		state("older, for who comes again", Failed, 9, "sequence 6, after 9")

		stop()
		store.mu.Lock()
		store.kept[theirs] = Kept{Mark: store.kept[theirs].Mark} // the document was lost
		store.mu.Unlock()
		f, stop = run(d)
		state("only the mark is known", Failed, 0, "sequence 6, after 9")

		// The operator's word.
		d.Initial = docs[5]
		f.Set([]Domain{d})
		if s := f.States()[0]; s.Sequence != 5 || len(s.Bundle.Authorities) == 0 {
			t.Errorf("the initial bundle is not in force: %+v", s)
		}
		if logs.count("begins anew") != 1 {
			t.Error("nothing in the log")
		}
		state("begun anew", Fresh, 6, "")
		stop()
		e.say(docs[5], nil)
		f, stop = run(d)
		state("the same initial bundle does not count twice", Failed, 6, "sequence 5, after 6")
		stop()
	})
}

// TestUnnumbered: a domain that numbers nothing is followed as it goes.
func TestUnnumbered(t *testing.T) {
	them := newDomain(t, theirs)
	first := edited(t, them.doc(), map[string]any{"spiffe_sequence": nil})
	them.rotate(2)
	second := edited(t, them.doc(), map[string]any{"spiffe_sequence": nil})
	synctest.Test(t, func(t *testing.T) {
		e := new(endpoint)
		e.say(first, nil)
		f := follower(t, newMemStore(), func(c *FollowerConfig) { c.Fetch = e.fetch })
		f.Set([]Domain{{Name: theirs, Endpoint: web}})
		for i, doc := range [][]byte{first, second, first} {
			e.say(doc, nil)
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if s := f.States()[0]; s.Freshness != Fresh || len(s.Bundle.Authorities) != 1+i%2 {
				t.Errorf("%d: %+v", i, s)
			}
		}
	})
}

// TestRefresh: as often as the hint says, within bounds, and more often while it fails; and what an endpoint that falls silent said stays.
func TestRefresh(t *testing.T) {
	them := newDomain(t, theirs)
	doc := them.doc()
	for hint, want := range map[any]time.Duration{
		nil: defaultRefresh, 60: time.Minute, 1: shortestRefresh, 0: defaultRefresh, 24 * 3600: longestRefresh,
	} {
		t.Run(fmt.Sprint(hint), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := new(endpoint)
				e.say(edited(t, doc, map[string]any{"spiffe_refresh_hint": hint}), nil)
				f := follower(t, newMemStore(), func(c *FollowerConfig) { c.Fetch = e.fetch })
				f.Set([]Domain{{Name: theirs, Endpoint: web}})
				time.Sleep(20 * want)
				synctest.Wait()
				_, pauses := e.times()
				shortest, longest := pauses[0], pauses[0]
				for _, p := range pauses {
					shortest, longest = min(shortest, p), max(longest, p)
				}
				if longest > want || shortest < want*9/10 || shortest == longest {
					t.Errorf("pauses of %s to %s, want %s and up to a tenth less", shortest, longest, want)
				}

				e.say(nil, errors.New("away"))
				time.Sleep(want)
				e.times()
				time.Sleep(2 * want)
				synctest.Wait()
				if n, _ := e.times(); n < 2 || n > 60 {
					t.Errorf("asked %d times in %s while it fails", n, 2*want)
				}
				time.Sleep(3 * want)
				synctest.Wait()
				if s := f.States()[0]; s.Freshness != Stale || s.Reason != "away" || len(s.Bundle.Authorities) != 1 {
					t.Errorf("%+v", s)
				}
				e.say(doc, nil)
				time.Sleep(longestRetry)
				synctest.Wait()
				if s := f.States()[0]; s.Freshness != Fresh || s.Reason != "" {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// TestKeptFirst: what can't be kept is not used, or a restart would let what was before be told again.
func TestKeptFirst(t *testing.T) {
	them := newDomain(t, theirs)
	first := them.doc()
	them.rotate(2)
	second := them.doc()
	synctest.Test(t, func(t *testing.T) {
		e, store := new(endpoint), newMemStore()
		e.say(first, nil)
		f := follower(t, store, func(c *FollowerConfig) { c.Fetch = e.fetch })
		f.Set([]Domain{{Name: theirs, Endpoint: web}, {Name: spiffeid.RequireTrustDomainFromString("broken.test"), Endpoint: web}})
		synctest.Wait()
		store.fail(errors.New("disk full"))
		e.say(second, nil)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		states := f.States()
		if s := states[1]; s.Sequence != 1 || s.Freshness != Failed || !strings.Contains(s.Reason, "disk full") {
			t.Errorf("%+v", s)
		}
		if s := states[0]; s.Freshness != Failed || !strings.Contains(s.Reason, "the disk is broken") || len(s.Bundle.Authorities) > 0 {
			t.Errorf("%+v", s)
		}
		store.fail(nil)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if s := f.States()[1]; s.Sequence != 2 || s.Freshness != Fresh {
			t.Errorf("%+v", s)
		}
	})
}

// TestVerifiers: a server of another domain is verified with the bundle of that one, be it followed or known otherwise.
func TestVerifiers(t *testing.T) {
	them, third := newDomain(t, theirs), newDomain(t, spiffeid.RequireTrustDomainFromString("third.test"))
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		seen := map[string][]spiffeid.TrustDomain{}
		fetch := func(_ context.Context, e Endpoint, b *trust.Bundles) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			for td := range b.All() {
				seen[e.URL] = append(seen[e.URL], td)
			}
			if e.Profile == HTTPSSPIFFE && len(b.All()) == 0 {
				return nil, errors.New("unknown")
			}
			return them.document()
		}
		f := follower(t, newMemStore(), func(c *FollowerConfig) {
			c.Fetch = fetch
			c.Others = func(td spiffeid.TrustDomain) (trust.Bundle, bool) {
				return trust.Bundle{Authorities: third.authority.Roots()}, td == third.name
			}
		})
		f.Set([]Domain{{Name: theirs, Endpoint: Endpoint{URL: "https://x.test/", Profile: HTTPSSPIFFE, ID: third.id}}})
		time.Sleep(time.Minute)
		f.Set([]Domain{{Name: theirs, Endpoint: Endpoint{URL: "https://y.test/", Profile: HTTPSSPIFFE, ID: them.id}}})
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if x, y := seen["https://x.test/"], seen["https://y.test/"]; len(x) == 0 || x[0] != third.name || len(y) == 0 || y[0] != theirs {
			t.Errorf("verified with %v", seen)
		}
	})
}

// TestMaxDomains: so many are followed.
func TestMaxDomains(t *testing.T) {
	f, err := NewFollower(FollowerConfig{Store: newMemStore()})
	if err != nil {
		t.Fatal(err)
	}
	var many []Domain
	for i := range MaxDomains + 5 {
		many = append(many, Domain{Name: spiffeid.RequireTrustDomainFromString(fmt.Sprintf("d%03d.test", i)), Endpoint: web})
	}
	f.Set(many)
	if n := len(f.States()); n != MaxDomains {
		t.Errorf("%d are followed", n)
	}
}
