package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Any mixture of events, against a model: after each, exactly those connections are closed whose peer would be refused now.
func TestGuardModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { guardModel(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func guardModel(t *testing.T, random *rand.Rand) {
	t.Helper()
	type connection struct {
		chain   []*x509.Certificate
		id      spiffeid.ID
		release func()
		closed  bool
	}
	domains := []spiffeid.TrustDomain{domainA, domainB}
	roots := map[spiffeid.TrustDomain][]*testCA{}
	for _, td := range domains {
		roots[td] = []*testCA{rootOf(t, td), rootOf(t, td)}
	}
	bundles := NewBundles()
	g := NewGuard(bundles, nil, nil)
	defer run(t, g.Run)()

	var mu sync.Mutex
	barred := map[spiffeid.ID]bool{} // guarded by mu
	policy := func(p Peer) error {
		mu.Lock()
		defer mu.Unlock()
		if barred[p.ID] {
			return errors.New("barred")
		}
		return nil
	}
	var c closes
	open := map[int]*connection{}
	randomBundle := func(td spiffeid.TrustDomain) Bundle {
		b := Bundle{Revoked: map[[32]byte]struct{}{}, RevokedIDs: map[spiffeid.ID]time.Time{}}
		if random.IntN(8) == 0 {
			id := spiffeid.RequireFromPath(td, fmt.Sprintf("/%d", random.IntN(3)))
			b.RevokedIDs[id] = time.Now().Add(-time.Duration(random.IntN(600)) * time.Second)
		}
		for _, ca := range roots[td] {
			if random.IntN(4) > 0 {
				b.Authorities = append(b.Authorities, ca.cert)
			}
			if random.IntN(8) == 0 {
				b.Revoked[Fingerprint(ca.cert)] = struct{}{}
			}
		}
		return b
	}
	for n := range 100 {
		td := domains[random.IntN(2)]
		switch random.IntN(8) {
		case 0, 1, 2:
			id := spiffeid.RequireFromPath(td, fmt.Sprintf("/%d", random.IntN(3)))
			end := time.Now().Add(time.Duration(random.IntN(1200)) * time.Second)
			svid := roots[td][random.IntN(2)].lived(id, end)
			open[n] = &connection{chain: svid.Certificates, id: id}
			open[n].release = g.Watch(stateOf(svid.Certificates), policy, c.of(n))
		case 3:
			for k, conn := range open { // any of them
				conn.release()
				conn.release()
				delete(open, k)
				break
			}
		case 4:
			bundles.Set(td, randomBundle(td))
		case 5:
			bundles.Replace(map[spiffeid.TrustDomain]Bundle{td: randomBundle(td)})
		case 6:
			mu.Lock()
			id := spiffeid.RequireFromPath(td, fmt.Sprintf("/%d", random.IntN(3)))
			barred[id] = !barred[id]
			mu.Unlock()
			g.Recheck()
		case 7:
			time.Sleep(time.Duration(random.IntN(300)) * time.Second)
		}
		synctest.Wait()
		now := time.Now()
		reasons := c.reasons(t)
		watched := 0
		for k, conn := range open {
			_, err := bundles.Verify(conn.chain, now)
			sound := err == nil && !barred[conn.id] && now.Before(conn.chain[0].NotAfter)
			_, closed := reasons[k]
			// What was closed once stays closed.
			if conn.closed = conn.closed || !sound; closed != conn.closed {
				t.Fatalf("step %d: connection %d of %s closed: %v, want %v (verify: %v, barred: %v, ends in %v)", n, k, conn.id, closed, conn.closed,
					err, barred[conn.id], conn.chain[0].NotAfter.Sub(now))
			}
			if !conn.closed {
				watched++
			}
		}
		if g.Watched() != watched {
			t.Fatalf("step %d: %d watched, want %d", n, g.Watched(), watched)
		}
	}
	if len(c.reasons(t)) < 5 {
		t.Errorf("only %d closed: the test has lost its bite", len(c.reasons(t)))
	}
}
