package trust

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// issuer issues as an Authority does, or fails, and remembers when it was asked.
type issuer struct {
	t        *testing.T
	ca       *testCA
	id       spiffeid.ID
	lifetime time.Duration

	mu    sync.Mutex
	fail  error       // guarded by mu
	asked []time.Time // guarded by mu
	// change, when set, spoils what is issued; guarded by mu
	change func(chain []*x509.Certificate) []*x509.Certificate
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	return &issuer{t: t, ca: rootOf(t, domainA), id: gatewayA, lifetime: time.Hour}
}

func (i *issuer) failing(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fail = err
}

func (i *issuer) times() []time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func (i *issuer) issue(_ context.Context, csr []byte) ([]*x509.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, time.Now())
	if i.fail != nil {
		return nil, i.fail
	}
	key, err := readRequest(csr)
	if err != nil {
		i.t.Errorf("request: %v", err)
		return nil, err
	}
	template := svidTemplate(i.id, time.Now(), i.lifetime, time.Time{})
	s := signer{certificate: i.ca.cert, key: i.ca.key}
	leaf, err := s.sign(template, key)
	if err != nil {
		return nil, err
	}
	chain := []*x509.Certificate{leaf}
	if i.change != nil {
		chain = i.change(chain)
	}
	return chain, nil
}

func mustSVID(t *testing.T, i *Identity) *x509svid.SVID {
	t.Helper()
	svid, err := i.SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func TestRenewalAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, lines := newIssuer(t), new(logLines)
		id := NewIdentity()
		var kept []*x509svid.SVID
		r := Renewal{Identity: id, Issue: from.issue, Keep: func(s *x509svid.SVID) error { kept = append(kept, s); return nil }, Log: lines.logger()}
		if _, err := id.SVID(); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("SVID before the first: %v, want ErrNoIdentity", err)
		}
		defer run(t, r.Run)()
		synctest.Wait()
		first := mustSVID(t, id)
		keys := map[string]bool{}
		for range 200 {
			changed := id.Changed()
			<-changed
			svid := mustSVID(t, id)
			if svid.ID != gatewayA {
				t.Fatalf("identity %s", svid.ID)
			}
			keys[string(svid.Certificates[0].RawSubjectPublicKeyInfo)] = true
		}
		synctest.Wait()
		if first == mustSVID(t, id) || len(keys) != 200 {
			t.Errorf("%d keys in 200 renewals, want as many", len(keys))
		}
		asked := from.times()
		low, high := time.Hour, time.Duration(0)
		for i := range asked[1:] {
			gap := asked[i+1].Sub(asked[i])
			low, high = min(low, gap), max(high, gap)
		}
		// Certificates hold whole seconds, so what counts as the birth of an SVID is up to a second before it was issued.
		if low < 27*time.Minute-time.Second || high > 33*time.Minute+time.Second {
			t.Errorf("renewed after %v to %v, want half an hour ±10 %%", low, high)
		}
		if high-low < 4*time.Minute {
			t.Errorf("renewed after %v to %v: no jitter to speak of", low, high)
		}
		if len(kept) != len(asked) || kept[len(kept)-1] != mustSVID(t, id) {
			t.Errorf("%d kept, %d issued", len(kept), len(asked))
		}
		if s := lines.String(); s != "" {
			t.Errorf("logged when all was well:\n%s", s)
		}
	})
}

// An authority that is away means later, never expired, as long as it is back in time; and it is asked neither too often
// nor too rarely.
func TestRenewalOutage(t *testing.T) {
	for _, test := range []struct {
		name               string
		outage             time.Duration
		failing, expiredAt int // log lines
	}{
		{"short", 10 * time.Second, 1, 0},
		{"nearly until the end", 25 * time.Minute, 1, 0},
		{"past the end", 3 * time.Hour, 1, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				from, lines := newIssuer(t), new(logLines)
				id := NewIdentity()
				defer run(t, Renewal{Identity: id, Issue: from.issue, Log: lines.logger()}.Run)()
				synctest.Wait()
				old := mustSVID(t, id)
				from.failing(errors.New("authority is away"))
				for len(from.times()) < 2 { // the first failure
					time.Sleep(time.Second)
				}
				failed := time.Now()
				time.Sleep(test.outage)
				if mustSVID(t, id) != old {
					t.Fatal("SVID changed without an authority")
				}
				asked := from.times()[1:]
				for i := range asked[1:] {
					if gap := asked[i+1].Sub(asked[i]); gap < firstPause/2 || gap > longestPause {
						t.Errorf("asked again after %v, want %v to %v", gap, firstPause/2, longestPause)
					}
				}
				if most := 10 + int(test.outage/(longestPause/2)); len(asked) > most {
					t.Errorf("asked %d times in %v, want at most %d", len(asked), test.outage, most)
				}
				from.failing(nil)
				back := time.Now()
				<-id.Changed()
				if late := time.Since(back); late > longestPause {
					t.Errorf("renewed %v after the authority came back", late)
				}
				synctest.Wait()
				if test.outage < time.Minute*25 && !time.Now().Before(old.Certificates[0].NotAfter) {
					t.Errorf("expired in an outage of %v", time.Since(failed))
				}
				if n := lines.count("SVID not renewed"); n != test.failing {
					t.Errorf("%d lines of failing, want %d:\n%s", n, test.failing, lines)
				}
				if n := lines.count("SVID expired"); n != test.expiredAt {
					t.Errorf("%d lines of expiry, want %d:\n%s", n, test.expiredAt, lines)
				}
				if n := lines.count("SVID renewed again"); n != 1 {
					t.Errorf("%d lines of recovery, want 1:\n%s", n, lines)
				}
			})
		})
	}
}

// The first SVID is asked for until there is one.
func TestRenewalFirstFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, lines := newIssuer(t), new(logLines)
		from.failing(errors.New("authority is away"))
		id := NewIdentity()
		defer run(t, Renewal{Identity: id, Issue: from.issue, Log: lines.logger()}.Run)()
		time.Sleep(time.Hour)
		if lines.count("SVID not renewed") != 1 || lines.count("level=") != 1 {
			t.Errorf("log:\n%s", lines)
		}
		from.failing(nil)
		<-id.Changed()
		mustSVID(t, id)
	})
}

// What can't be used is no renewal.
func TestRenewalRefusesAnswers(t *testing.T) {
	for name, change := range map[string]func(i *issuer, chain []*x509.Certificate) []*x509.Certificate{
		"nothing":     func(*issuer, []*x509.Certificate) []*x509.Certificate { return nil },
		"another key": func(i *issuer, _ []*x509.Certificate) []*x509.Certificate { return i.ca.svid(i.id).Certificates },
		"a CA":        func(i *issuer, _ []*x509.Certificate) []*x509.Certificate { return []*x509.Certificate{i.ca.cert} },
	} {
		synctest.Test(t, func(t *testing.T) {
			from := newIssuer(t)
			id := NewIdentity()
			old := from.ca.lived(gatewayA, time.Now().Add(10*time.Minute))
			id.Set(old)
			from.change = func(chain []*x509.Certificate) []*x509.Certificate { return change(from, chain) }
			defer run(t, Renewal{Identity: id, Issue: from.issue}.Run)()
			time.Sleep(9 * time.Minute)
			if mustSVID(t, id) != old {
				t.Errorf("%s: taken for an SVID", name)
			}
			if len(from.times()) < 3 {
				t.Errorf("%s: asked %d times only", name, len(from.times()))
			}
		})
	}
}

func TestAcceptIssued(t *testing.T) {
	a := rootOf(t, domainA)
	old := a.svid(gatewayA)
	now := time.Now()
	expired := a.lived(gatewayA, now.Add(-time.Second))
	other := a.svid(spiffeid.RequireFromPath(domainA, "/isthmus/gateway/1"))
	for _, test := range []struct {
		name string
		svid *x509svid.SVID
		key  crypto.Signer
		old  *x509svid.SVID
		ok   bool
	}{
		{"first", other, other.PrivateKey, nil, true},
		{"renewed", a.svid(gatewayA), nil, old, true},
		{"another key", old, other.PrivateKey, nil, false},
		{"another identity", other, other.PrivateKey, old, false},
		{"expired", expired, expired.PrivateKey, nil, false},
	} {
		if test.key == nil {
			test.key = test.svid.PrivateKey
		}
		svid, err := acceptIssued(test.svid.Certificates, test.key, test.old, now)
		if (err == nil) != test.ok {
			t.Errorf("%s: %v, want accepted: %v", test.name, err, test.ok)
		}
		if test.ok && (svid.ID != test.svid.ID || svid.PrivateKey != test.key) {
			t.Errorf("%s: %+v", test.name, svid)
		}
	}
}

// A disk that is full does not end an identity.
func TestRenewalKeepFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from, lines := newIssuer(t), new(logLines)
		id := NewIdentity()
		r := Renewal{Identity: id, Issue: from.issue, Log: lines.logger(), Keep: func(*x509svid.SVID) error { return errors.New("disk full") }}
		defer run(t, r.Run)()
		synctest.Wait()
		first := mustSVID(t, id)
		time.Sleep(40 * time.Minute)
		if mustSVID(t, id) == first {
			t.Error("not renewed")
		}
		if len(from.times()) != 2 || lines.count("not kept on disk") != 2 {
			t.Errorf("asked %d times, log:\n%s", len(from.times()), lines)
		}
	})
}

// SVIDs of seconds are renewed at their half-life too, in spite of two minutes of backdating, and never in a tight loop.
func TestRenewalShortLived(t *testing.T) {
	for lifetime, want := range map[time.Duration]int{10 * time.Second: 720, time.Second: 3600, time.Minute: 120} {
		synctest.Test(t, func(t *testing.T) {
			from := newIssuer(t)
			from.lifetime = lifetime
			id := NewIdentity()
			defer run(t, Renewal{Identity: id, Issue: from.issue}.Run)()
			time.Sleep(time.Hour)
			if n := len(from.times()); n < want*8/10 || n > want*12/10 {
				t.Errorf("SVIDs for %v: %d in an hour, want about %d", lifetime, n, want)
			}
		})
	}
}

// An SVID from a restart is renewed when its half-life is over, and one that somebody sets is noticed.
func TestRenewalSetBySomebody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := newIssuer(t)
		id := NewIdentity()
		id.Set(from.ca.lived(gatewayA, time.Now().Add(10*time.Hour)))
		defer run(t, Renewal{Identity: id, Issue: from.issue}.Run)()
		time.Sleep(time.Hour)
		if len(from.times()) > 0 {
			t.Fatal("renewed long before half-life")
		}
		short := from.ca.lived(gatewayA, time.Now().Add(2*time.Minute))
		id.Set(short)
		time.Sleep(2 * time.Minute)
		if len(from.times()) != 1 || mustSVID(t, id) == short {
			t.Errorf("asked %d times, want once", len(from.times()))
		}
	})
}

// A wall clock that jumps, as after a suspend, is noticed within a nap.
func TestRenewalClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := newIssuer(t)
		id := NewIdentity()
		var mu sync.Mutex
		var jump time.Duration
		now := func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(jump)
		}
		defer run(t, Renewal{Identity: id, Issue: from.issue, Now: now}.Run)()
		synctest.Wait()
		mu.Lock()
		jump = 40 * time.Minute
		mu.Unlock()
		time.Sleep(longestNap)
		synctest.Wait()
		if len(from.times()) != 2 {
			t.Errorf("asked %d times, want twice", len(from.times()))
		}
	})
}

// An authority that hangs is given up for the moment, not waited for.
func TestRenewalIssuerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		hang := func(ctx context.Context, _ []byte) ([]*x509.Certificate, error) {
			calls++
			<-ctx.Done()
			return nil, ctx.Err()
		}
		stop := run(t, Renewal{Identity: NewIdentity(), Issue: hang}.Run)
		time.Sleep(10 * issueTimeout)
		stop()
		if calls < 4 {
			t.Errorf("asked %d times in %v", calls, 10*issueTimeout)
		}
	})
}

func TestRenewalNeedsItsParts(t *testing.T) {
	if err := (Renewal{}).Run(t.Context()); err == nil {
		t.Error("a renewal of nothing runs")
	}
}

func TestBackOff(t *testing.T) {
	for failures, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 100: time.Minute, 1 << 40: time.Minute} {
		if low, high := backOff(failures, 0), backOff(failures, 1); low != want/2 || high != want {
			t.Errorf("after %d failures: %v to %v, want %v to %v", failures, low, high, want/2, want)
		}
	}
}

// A renewal may be asked for early, once; one that fails goes on at its own pace, whoever asks.
func TestRenewalEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, early := newIssuer(t), make(chan struct{}, 1)
		id := NewIdentity()
		defer run(t, Renewal{Identity: id, Issue: i.issue, Early: early}.Run)()
		time.Sleep(time.Minute)
		first, err := id.SVID()
		if err != nil {
			t.Fatal(err)
		}
		early <- struct{}{}
		synctest.Wait()
		second, err := id.SVID()
		if err != nil || second == first || len(i.times()) != 2 {
			t.Fatalf("asked %d times: %v", len(i.times()), err)
		}
		i.failing(errors.New("away"))
		for range 1000 {
			select {
			case early <- struct{}{}:
			default:
			}
			time.Sleep(time.Second)
		}
		if n := len(i.times()); n < 15 || n > 40 {
			t.Errorf("asked %d times in %v of failing", n, 1000*time.Second)
		}
	})
}
