package trust

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// stateOf is the state of a connection whose peer showed chain.
func stateOf(chain []*x509.Certificate) tls.ConnectionState {
	return tls.ConnectionState{HandshakeComplete: true, PeerCertificates: chain}
}

// closes records what a guard closed, and why.
type closes struct {
	mu   sync.Mutex
	errs map[int][]error // guarded by mu
}

func (c *closes) of(n int) func(error) {
	return func(err error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.errs == nil {
			c.errs = map[int][]error{}
		}
		c.errs[n] = append(c.errs[n], err)
	}
}

func (c *closes) reasons(t *testing.T) map[int]string {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	got := map[int]string{}
	for n, errs := range c.errs {
		got[n] = reasonOf(t, errs[0]).String()
		if len(errs) > 1 {
			t.Errorf("connection %d was closed %d times", n, len(errs))
		}
	}
	return got
}

func TestGuard(t *testing.T) {
	for _, test := range []struct {
		name string
		act  func(p *pair, g *Guard, barred *bool)
		want string // why the peer of b.test is closed
	}{
		{"nothing", func(*pair, *Guard, *bool) {}, ""},
		{"another domain removed", func(p *pair, _ *Guard, _ *bool) { p.bundlesA.Remove(domainA) }, ""},
		{"domain removed", func(p *pair, _ *Guard, _ *bool) { p.bundlesA.Remove(domainB) }, "unknown_domain"},
		{"everything replaced by nothing", func(p *pair, _ *Guard, _ *bool) { p.bundlesA.Replace(nil) }, "unknown_domain"},
		{"root replaced", func(p *pair, _ *Guard, _ *bool) { p.bundlesA.Set(domainB, rootOf(p.rootA.t, domainB).bundle()) }, "bad_chain"},
		{"root joined by another", func(p *pair, _ *Guard, _ *bool) {
			p.bundlesA.Set(domainB, Bundle{Authorities: []*x509.Certificate{rootOf(p.rootA.t, domainB).cert, p.rootB.cert}})
		}, ""},
		{"key revoked", func(p *pair, _ *Guard, _ *bool) {
			b := p.rootB.bundle()
			b.Revoked = map[[32]byte]struct{}{Fingerprint(p.rootB.cert): {}}
			p.bundlesA.Set(domainB, b)
		}, "revoked"},
		{"ID revoked", func(p *pair, _ *Guard, _ *bool) {
			b := p.rootB.bundle()
			svid, _ := p.clientID.SVID()
			b.RevokedIDs = map[spiffeid.ID]time.Time{svid.ID: time.Now()}
			p.bundlesA.Set(domainB, b)
		}, "revoked"},
		{"ID revoked before it was issued", func(p *pair, _ *Guard, _ *bool) {
			b := p.rootB.bundle()
			svid, _ := p.clientID.SVID()
			b.RevokedIDs = map[spiffeid.ID]time.Time{svid.ID: svid.Certificates[0].NotBefore.Add(-time.Second)}
			p.bundlesA.Set(domainB, b)
		}, ""},
		{"JWT key added", func(p *pair, _ *Guard, _ *bool) {
			b := p.rootB.bundle()
			b.JWTAuthorities = map[string]crypto.PublicKey{"key": p.rootB.cert.PublicKey}
			p.bundlesA.Set(domainB, b)
		}, ""},
		{"policy changed, nobody said so", func(_ *pair, _ *Guard, barred *bool) { *barred = true }, ""},
		{"policy changed", func(_ *pair, g *Guard, barred *bool) { *barred = true; g.Recheck() }, "not_allowed"},
		{"policy asked again, same answer", func(_ *pair, g *Guard, _ *bool) { g.Recheck() }, ""},
		{"removed and added again before anybody looked", func(p *pair, _ *Guard, _ *bool) {
			b := p.rootB.bundle()
			p.bundlesA.Remove(domainB)
			p.bundlesA.Set(domainB, b)
		}, ""},
		{"one nap later", func(*pair, *Guard, *bool) { time.Sleep(2 * longestNap) }, ""},
		{"SVID ended", func(*pair, *Guard, *bool) { time.Sleep(2 * time.Hour) }, "expired"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				g := NewGuard(p.bundlesA, nil, nil)
				defer run(t, g.Run)()
				var mu sync.Mutex
				barred := false
				policy := func(Peer) error {
					mu.Lock()
					defer mu.Unlock()
					if barred {
						return errors.New("barred")
					}
					return nil
				}
				var c closes
				svid, _ := p.clientID.SVID()
				release := g.Watch(stateOf(svid.Certificates), policy, c.of(1))
				synctest.Wait()
				if g.Watched() != 1 {
					t.Fatalf("%d watched, want 1", g.Watched())
				}
				mu.Lock() // Recheck and bundles don't call policies themselves
				test.act(p, g, &barred)
				mu.Unlock()
				synctest.Wait()
				want := map[int]string{}
				if test.want != "" {
					want[1] = test.want
				}
				if diff := cmp.Diff(want, c.reasons(t)); diff != "" {
					t.Errorf("closed (-want +got):\n%s", diff)
				}
				if want := 1 - len(want); g.Watched() != want {
					t.Errorf("%d watched, want %d", g.Watched(), want)
				}
				release()
				release()
				if g.Watched() != 0 {
					t.Errorf("%d watched after release", g.Watched())
				}
				p.bundlesA.Replace(nil)
				g.Recheck()
				synctest.Wait()
				c.reasons(t)
			})
		})
	}
}

// Who would be refused when Watch is called is closed, with the right reason; also when Run starts later only.
func TestGuardRefusesAtOnce(t *testing.T) {
	for _, runFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			g := NewGuard(p.bundlesA, nil, nil)
			start := func() func() { return run(t, g.Run) }
			if runFirst {
				defer start()()
				synctest.Wait()
			}
			svid, _ := p.clientID.SVID()
			unfinished := stateOf(svid.Certificates)
			unfinished.HandshakeComplete = false
			var c closes
			g.Watch(stateOf(nil), AllowAny(), c.of(1))
			g.Watch(stateOf(svid.Certificates), nil, c.of(2))
			g.Watch(stateOf(svid.Certificates), AllowIDs(gatewayA), c.of(3))
			g.Watch(stateOf(p.rootB.lived(gatewayB, time.Now().Add(-time.Second)).Certificates), AllowAny(), c.of(4))
			g.Watch(stateOf(rootOf(t, domainB).svid(gatewayB).Certificates), AllowAny(), c.of(5))
			g.Watch(unfinished, AllowAny(), c.of(6))
			g.Watch(stateOf(svid.Certificates), AllowAny(), c.of(7))
			if !runFirst {
				if got := c.reasons(t); len(got) > 0 {
					t.Errorf("closed before Run: %v", got)
				}
				defer start()()
			}
			synctest.Wait()
			want := map[int]string{1: "bad_svid", 2: "not_allowed", 3: "not_allowed", 4: "expired", 5: "bad_chain", 6: "bad_svid"}
			if diff := cmp.Diff(want, c.reasons(t)); diff != "" {
				t.Errorf("closed (-want +got):\n%s", diff)
			}
		})
	}
}

// A bundle that changes between a handshake and Watch, or right after Watch has verified, is not missed.
func TestGuardRaces(t *testing.T) {
	p := newPair(t)
	other := rootOf(t, domainB)
	var all []*x509.Certificate
	svid, _ := p.clientID.SVID()
	all = svid.Certificates
	g := NewGuard(p.bundlesA, nil, nil)
	stop := run(t, g.Run)
	closed := make(chan error, 1000)
	var watching sync.WaitGroup
	for range 4 {
		watching.Go(func() {
			for range 50 {
				g.Watch(stateOf(all), AllowAny(), func(err error) { closed <- err })
			}
		})
	}
	watching.Go(func() {
		for range 20 {
			p.bundlesA.Set(domainB, Bundle{Authorities: []*x509.Certificate{p.rootB.cert, other.cert}})
			g.Recheck()
			p.bundlesA.Set(domainB, p.rootB.bundle())
		}
		p.bundlesA.Remove(domainB)
	})
	watching.Wait()
	for range 200 {
		select {
		case err := <-closed:
			if reasonOf(t, err) != UnknownDomain {
				t.Errorf("closed with %v", err)
			}
		case <-time.After(testDeadline):
			t.Fatalf("still %d open", g.Watched())
		}
	}
	stop()
	if len(closed) > 0 || g.Watched() != 0 {
		t.Errorf("%d closed twice, %d watched", len(closed), g.Watched())
	}
}

// What changes after Watch has verified, and is over and done with for Run before the connection is in its list, is not missed.
func TestGuardChangeDuringWatch(t *testing.T) {
	for want, change := range map[string]func(p *pair, g *Guard, barred *bool){
		"unknown_domain": func(p *pair, _ *Guard, _ *bool) { p.bundlesA.Remove(domainB) },
		"not_allowed":    func(_ *pair, g *Guard, barred *bool) { *barred = true; g.Recheck() },
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t)
			g := NewGuard(p.bundlesA, nil, nil)
			defer run(t, g.Run)()
			synctest.Wait()
			svid, _ := p.clientID.SVID()
			// Expires first, so that the next one has no reason of its own to wake Run.
			defer g.Watch(stateOf(p.rootA.lived(gatewayA, time.Now().Add(time.Minute)).Certificates), AllowAny(), func(error) {})()
			barred, first := false, true
			var c closes
			defer g.Watch(stateOf(svid.Certificates), func(Peer) error {
				if barred {
					return errors.New("barred")
				}
				if first { // in Watch, between its verification and the list
					first = false
					change(p, g, &barred)
					synctest.Wait()
				}
				return nil
			}, c.of(1))()
			synctest.Wait()
			if got := c.reasons(t)[1]; got != want {
				t.Errorf("closed for %q, want %q", got, want)
			}
		})
	}
}

// Closing may call back into the guard, and one that hangs holds up neither the others nor the guard.
func TestGuardCloseHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		g := NewGuard(p.bundlesA, nil, nil)
		stop := run(t, g.Run)
		svid, _ := p.clientID.SVID()
		hang := make(chan struct{})
		g.Watch(stateOf(svid.Certificates), AllowAny(), func(error) { <-hang })
		var c closes
		for n := range 3 * maxClosers {
			var release func()
			release = g.Watch(stateOf(svid.Certificates), AllowAny(), func(err error) {
				release()
				g.Recheck()
				_ = g.Watched()
				c.of(n)(err)
			})
		}
		p.bundlesA.Remove(domainB)
		synctest.Wait()
		if got := len(c.reasons(t)); got != 3*maxClosers {
			t.Errorf("%d closed beside the one that hangs, want %d", got, 3*maxClosers)
		}
		p.bundlesA.Set(domainB, p.rootB.bundle())
		synctest.Wait()
		g.Watch(stateOf(svid.Certificates), AllowAny(), c.of(1000))
		p.bundlesA.Remove(domainB)
		synctest.Wait()
		if c.reasons(t)[1000] != "unknown_domain" {
			t.Error("the guard stands still while one close hangs")
		}
		ended := make(chan struct{})
		go func() {
			stop()
			close(ended)
		}()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("Run returned before all closing was done")
		default:
		}
		close(hang)
		<-ended
	})
}

// What is watched when Run ends stays open: the program is draining.
func TestGuardEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		g := NewGuard(p.bundlesA, nil, nil)
		svid, _ := p.clientID.SVID()
		var c closes
		defer g.Watch(stateOf(svid.Certificates), AllowAny(), c.of(1))()
		run(t, g.Run)()
		p.bundlesA.Remove(domainB)
		synctest.Wait()
		if got := c.reasons(t); len(got) > 0 {
			t.Errorf("closed: %v", got)
		}
	})
}

// A change of one domain costs the connections of the others nothing.
func TestGuardVerifiesOnlyWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		g := NewGuard(p.bundlesA, nil, nil)
		defer run(t, g.Run)()
		asked := map[spiffeid.TrustDomain]int{}
		policy := func(p Peer) error { asked[p.ID.TrustDomain()]++; return nil }
		for _, ca := range []struct {
			*testCA
			id spiffeid.ID
		}{{p.rootA, gatewayA}, {p.rootB, gatewayB}} {
			defer g.Watch(stateOf(ca.svid(ca.id).Certificates), policy, func(error) {})()
		}
		synctest.Wait()
		p.bundlesA.Set(domainB, Bundle{Authorities: []*x509.Certificate{p.rootB.cert, rootOf(t, domainB).cert}})
		synctest.Wait()
		p.bundlesA.Replace(p.bundlesA.All()) // nothing new
		synctest.Wait()
		time.Sleep(5 * longestNap)
		if diff := cmp.Diff(map[string]int{"a.test": 1, "b.test": 2}, byName(asked)); diff != "" {
			t.Errorf("policy asked (-want +got):\n%s", diff)
		}
		g.Recheck()
		synctest.Wait()
		if diff := cmp.Diff(map[string]int{"a.test": 2, "b.test": 3}, byName(asked)); diff != "" {
			t.Errorf("policy asked (-want +got):\n%s", diff)
		}
		p.bundlesA.Set(domainB, p.rootB.bundle())
		synctest.Wait()
		if diff := cmp.Diff(map[string]int{"a.test": 2, "b.test": 4}, byName(asked)); diff != "" {
			t.Errorf("policy asked (-want +got):\n%s", diff)
		}
	})
}

// A proof that holds by another path after a change holds as long as that path.
func TestGuardProofGetsShorter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := rootOf(t, domainA), rootOf(t, domainA)
		issuing := first.sub(caTemplate(t, "a.test"))
		short := caTemplate(t, "a.test")
		short.NotAfter = time.Now().Add(10 * time.Minute)
		cross := second.create(short, second.cert, issuing.key)
		chain := append(issuing.svid(gatewayA).Certificates, cross)
		both := Bundle{Authorities: []*x509.Certificate{first.cert, second.cert}}
		bundles := NewBundles()
		bundles.Set(domainA, both)
		g := NewGuard(bundles, nil, nil)
		defer run(t, g.Run)()
		var c closes
		// Another, of a path that is not touched, ends in between.
		defer g.Watch(stateOf(second.lived(gatewayA, time.Now().Add(20*time.Minute)).Certificates), AllowAny(), c.of(1))()
		defer g.Watch(stateOf(chain), AllowAny(), c.of(2))()
		time.Sleep(5 * time.Minute)
		both.Revoked = map[[32]byte]struct{}{Fingerprint(first.cert): {}}
		bundles.Set(domainA, both)
		synctest.Wait()
		if got := c.reasons(t); len(got) > 0 {
			t.Fatalf("closed at once: %v", got)
		}
		time.Sleep(5*time.Minute + time.Second)
		synctest.Wait()
		if diff := cmp.Diff(map[int]string{2: "expired"}, c.reasons(t)); diff != "" {
			t.Errorf("closed (-want +got):\n%s", diff)
		}
	})
}

func byName(m map[spiffeid.TrustDomain]int) map[string]int {
	named := map[string]int{}
	for td, n := range m {
		named[td.Name()] = n
	}
	return named
}
