package trust

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Times of the renewal loop.
const (
	issueTimeout  = 30 * time.Second // one call of Issue
	firstPause    = time.Second      // after the first failure; doubled with each
	longestPause  = time.Minute
	shortestPause = time.Second // between two renewals, however short-lived the SVIDs are
	longestNap    = time.Minute // timers don't see the wall clock being set, or a machine asleep: look again
	renewalJitter = 0.1         // of the half-life, either way
)

// Issue asks an authority for a certificate and returns the chain, leaf first. The request is what NewRequest made; who
// asks is established by the call's own means (a join token, the present SVID).
type Issue func(ctx context.Context, csr []byte) ([]*x509.Certificate, error)

// Renewal keeps an Identity alive: a new key and SVID when there is none, and at half-life (±10 %, so that what was
// started together doesn't renew together). It never gives up: not at expiry, not after.
type Renewal struct {
	Identity *Identity
	Issue    Issue
	// Keep persists a new SVID; may be nil. Its failure is logged and doesn't keep the SVID from being used: a full disk
	// must not end an identity.
	Keep func(*x509svid.SVID) error
	// Early asks for a renewal now: the SVID is of no use any more. It is not asked for while one is failing, which goes on by itself. May be
	// nil.
	Early <-chan struct{}
	Now   func() time.Time // the clock; time.Now when nil
	Log   *slog.Logger     // one line for each change of state; may be nil
}

// renewalState is what was last told in the log.
type renewalState uint8

const (
	renewalGood renewalState = iota
	renewalFailing
	renewalExpired
)

// Run renews until ctx ends. It notices an SVID that somebody else Set.
func (r Renewal) Run(ctx context.Context) error {
	if r.Identity == nil || r.Issue == nil {
		return errors.New("trust: renewal: Identity and Issue are required")
	}
	l := renewalLoop{Renewal: r, now: clock(r.Now), log: logger(r.Log)}
	for {
		changed := r.Identity.Changed()
		svid, err := r.Identity.SVID()
		if err != nil {
			svid = nil // none yet
		}
		if svid != l.planned {
			l.plan(svid)
		}
		if wait := l.until(); wait > 0 {
			early, goOn := l.nap(ctx, min(wait, longestNap), changed)
			if !goOn {
				return nil
			}
			if early && l.retryAt.IsZero() {
				l.renewAt = l.now()
			}
			l.noteExpiry(svid)
			continue
		}
		err = l.renew(ctx, svid)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			l.fail(svid, err)
		}
	}
}

// renewalLoop is owned by one Run.
type renewalLoop struct {
	Renewal
	now func() time.Time
	log *slog.Logger

	state    renewalState
	failures int
	retryAt  time.Time // zero when the last attempt succeeded
	earliest time.Time // no renewal before, after a success

	planned *x509svid.SVID // the SVID that renewAt was drawn for
	renewAt time.Time

	// key and csr are what was asked for last and got no answer: an authority that is away costs no new key at each attempt.
	key crypto.Signer
	csr []byte
}

// nap waits for d, for a change of the SVID, or for somebody to ask for a new one early, and tells whether to go on.
func (l *renewalLoop) nap(ctx context.Context, d time.Duration, changed <-chan struct{}) (early, goOn bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-l.Early:
		early = true
	case <-timer.C:
	}
	return early, ctx.Err() == nil
}

// plan draws the moment to renew a new SVID, whoever set it. It ends the troubles with the last one.
func (l *renewalLoop) plan(svid *x509svid.SVID) {
	l.planned, l.renewAt, l.retryAt, l.failures = svid, time.Time{}, time.Time{}, 0
	if svid == nil {
		return
	}
	leaf := svid.Certificates[0]
	l.renewAt = renewalTime(leaf, l.now(), rand.Float64()) //nolint:gosec // G404: a jitter, not a secret
	if l.state != renewalGood && l.now().Before(leaf.NotAfter) {
		l.state = renewalGood
		l.log.Info("SVID renewed again", "spiffe_id", svid.ID.String(), "not_after", leaf.NotAfter)
	}
}

// until returns how long to wait for the next attempt; 0 means now.
func (l *renewalLoop) until() time.Duration {
	at := l.renewAt
	if at.Before(l.earliest) {
		at = l.earliest
	}
	if !l.retryAt.IsZero() {
		at = l.retryAt
	}
	return max(0, at.Sub(l.now()))
}

// renewalTime is half-life ±10 % of what was planned for at now; random is in [0,1). Life begins where the backdating ends,
// or SVIDs of a few minutes would be past their half-life when they are issued.
func renewalTime(leaf *x509.Certificate, now time.Time, random float64) time.Time {
	born := earlier(leaf.NotBefore.Add(backdate), now)
	if born.Before(leaf.NotBefore) {
		born = leaf.NotBefore
	}
	half := float64(leaf.NotAfter.Sub(born)) / 2
	return born.Add(time.Duration(half * (1 + renewalJitter*(2*random-1))))
}

func (l *renewalLoop) renew(ctx context.Context, old *x509svid.SVID) error {
	if l.key == nil {
		var err error
		if l.key, l.csr, err = NewRequest(); err != nil {
			return err
		}
	}
	issueCtx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	chain, err := l.Issue(issueCtx, l.csr)
	if err != nil {
		return err
	}
	key := l.key
	l.key, l.csr = nil, nil
	svid, err := acceptIssued(chain, key, old, l.now())
	if err != nil {
		return fmt.Errorf("what the authority issued is unusable: %w", err)
	}
	l.earliest = l.now().Add(shortestPause)
	l.Identity.Set(svid)
	if l.Keep != nil {
		if err := l.Keep(svid); err != nil {
			l.log.WarnContext(ctx, "SVID renewed but not kept on disk", "spiffe_id", svid.ID.String(), "error", err)
		}
	}
	return nil
}

// acceptIssued makes an SVID of an answer. Verifying it is the peers' business: they have the bundle that counts.
func acceptIssued(chain []*x509.Certificate, key crypto.Signer, old *x509svid.SVID, now time.Time) (*x509svid.SVID, error) {
	p, err := inspect(chain)
	if err != nil {
		return nil, err
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(chain[0].PublicKey):
		return nil, errors.New("it is for another key")
	case !now.Before(p.NotAfter):
		return nil, fmt.Errorf("it ended at %s", p.NotAfter.Format(time.RFC3339))
	case old != nil && old.ID != p.ID:
		// Peers expect the identity we are known by; another one is a change that a restart makes, not a renewal.
		return nil, fmt.Errorf("it is for %s, not for %s", p.ID, old.ID)
	}
	return &x509svid.SVID{ID: p.ID, Certificates: chain, PrivateKey: key}, nil
}

// fail counts a failed attempt, and logs the first.
func (l *renewalLoop) fail(old *x509svid.SVID, err error) {
	l.retryAt = l.now().Add(backOff(l.failures, rand.Float64())) //nolint:gosec // G404: a jitter, not a secret
	l.failures++
	if l.state == renewalGood {
		l.state = renewalFailing
		attrs := []any{"error", err}
		if old != nil {
			attrs = append(attrs, "spiffe_id", old.ID.String(), "not_after", old.Certificates[0].NotAfter)
		}
		l.log.Warn("SVID not renewed, trying on", attrs...)
	}
	l.noteExpiry(old)
}

// noteExpiry logs, once, that peers refuse us from now on.
func (l *renewalLoop) noteExpiry(svid *x509svid.SVID) {
	if l.state == renewalFailing && svid != nil && !l.now().Before(svid.Certificates[0].NotAfter) {
		l.state = renewalExpired
		l.log.Error("SVID expired, peers refuse this program", "spiffe_id", svid.ID.String(), "not_after", svid.Certificates[0].NotAfter)
	}
}

// backOff returns the pause after a number of earlier failures: doubling, and half of it by chance; random is in [0,1).
func backOff(failures int, random float64) time.Duration {
	pause := longestPause
	if failures < 16 {
		pause = min(firstPause<<failures, longestPause)
	}
	return pause/2 + time.Duration(random*float64(pause/2))
}

// nap waits for d, for wake, or for ctx to end, and tells whether to go on.
func nap(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
