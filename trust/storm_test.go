package trust

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	stormIdentities = 5000
	stormOutage     = 20 * time.Minute
	// stormPeak bounds how many SVIDs an authority is asked for in one second after it came back: three times what there would be if all were
	// spread evenly over the minute that renewals wait at most, and a twentieth of all.
	stormPeak = 250
)

// storm is an authority that many programs renew with, and that can be away.
type storm struct {
	authority *Authority

	mu     sync.Mutex
	away   bool           // guarded by mu
	issued map[int64]int  // guarded by mu; by second
	asked  map[int64]int  // guarded by mu; likewise, while it is away
	least  time.Duration  // guarded by mu; what the SVIDs that were renewed had left
	ended  int            // guarded by mu; of those, that had ended
	times  map[string]int // guarded by mu; by ID, how often issued
}

func (s *storm) issue(id spiffeid.ID, held *Identity) Issue {
	return func(_ context.Context, csr []byte) ([]*x509.Certificate, error) {
		now := time.Now()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.away {
			s.asked[now.Unix()]++
			return nil, errors.New("the authority is away")
		}
		if svid, err := held.SVID(); err == nil {
			left := svid.Certificates[0].NotAfter.Sub(now)
			s.least = min(s.least, left)
			if left <= 0 {
				s.ended++
			}
		}
		s.issued[now.Unix()]++
		s.times[id.String()]++
		return s.authority.Issue(csr, id)
	}
}

func (s *storm) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

func peak(perSecond map[int64]int, from time.Time) (most, sum int) {
	for at, n := range perSecond {
		if at >= from.Unix() {
			most, sum = max(most, n), sum+n
		}
	}
	return most, sum
}

// Five thousand programs, and an authority that is away for twenty minutes from the worst moment on: none of their SVIDs ends, and when it is
// back it is not asked for all of them at once.
func TestIssuanceStorm(t *testing.T) {
	if testing.Short() {
		t.Skip("issues some fifteen thousand SVIDs")
	}
	for _, test := range []struct {
		name   string
		spread time.Duration // over which they were started
		away   time.Duration // after which the authority goes away
	}{
		{"started at once", 0, 27 * time.Minute}, // just as the first of them are about to renew
		{"started over half an hour", 30 * time.Minute, 65 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				a, err := OpenAuthority(AuthorityConfig{TrustDomain: domainA, Dir: dir})
				if err != nil {
					t.Fatal(err)
				}
				s := &storm{authority: a, issued: map[int64]int{}, asked: map[int64]int{}, times: map[string]int{}, least: time.Hour}
				var all []*Identity
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				for i := range stormIdentities {
					id, held := spiffeid.RequireFromPath(domainA, "/ns/shop/sa/w"+strconv.Itoa(i)), NewIdentity()
					all = append(all, held)
					late := time.Duration(rand.Float64() * float64(test.spread))
					running.Go(func() {
						if !nap(ctx, late, nil) {
							return
						}
						if err := (Renewal{Identity: held, Issue: s.issue(id, held)}).Run(ctx); err != nil {
							t.Error(err)
						}
					})
				}
				time.Sleep(test.away)
				s.setAway(true)
				time.Sleep(stormOutage)
				for i, held := range all {
					if svid := mustSVID(t, held); !time.Now().Before(svid.Certificates[0].NotAfter) {
						t.Fatalf("identity %d has ended in the outage", i)
					}
				}
				back := time.Now()
				s.setAway(false)
				time.Sleep(10 * time.Minute)
				cancel()
				running.Wait()

				s.mu.Lock()
				defer s.mu.Unlock()
				if s.ended > 0 || s.least < 5*time.Minute {
					t.Errorf("%d SVIDs had ended when they were renewed, the least had %v left", s.ended, s.least)
				}
				most, sum := peak(s.issued, back)
				if sum < stormIdentities/2 {
					t.Errorf("%d SVIDs issued since the authority is back: there was no storm", sum)
				}
				if most > stormPeak {
					t.Errorf("%d SVIDs issued in one second after the authority came back, at most %d may be", most, stormPeak)
				}
				knocked, _ := peak(s.asked, time.Time{}.Add(1))
				if knocked > 2*stormPeak { // the first attempts are a second or two apart
					t.Errorf("asked for %d SVIDs in one second while it was away, at most %d may be", knocked, 2*stormPeak)
				}
				t.Logf("%d issued after the outage, at most %d in a second (%d while it was away); the least life left was %v", sum, most, knocked, s.least)
			})
		})
	}
}
