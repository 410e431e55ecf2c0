package trust

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Lifetimes when the configuration names none, and what belongs to them.
const (
	defaultRootLifetime    = 90 * 24 * time.Hour
	defaultIssuingLifetime = 48 * time.Hour
	defaultSVIDLifetime    = time.Hour

	authorityNap = 10 * time.Minute // looks again that often, in case the wall clock was set or the machine asleep

	backdate   = 2 * time.Minute // for peers whose clocks are behind
	maxRequest = 16 << 10        // bytes of a certificate request
)

// AuthorityConfig is what an Authority is opened with.
type AuthorityConfig struct {
	TrustDomain spiffeid.TrustDomain
	// Dir holds keys and certificates; made (0700) when it isn't there. One process at a time.
	Dir             string
	RootLifetime    time.Duration // 90 days when 0
	IssuingLifetime time.Duration // of the issuing CA, 48 hours when 0; at most a quarter of RootLifetime
	SVIDLifetime    time.Duration // 1 hour when 0; at most half of IssuingLifetime
	// Holds says why the next root, which is published, should not sign yet: who has not got it. It must be quick. The schedule waits as long as
	// there is a reason, but not past the root's last call; nil: there is none.
	Holds func(next *x509.Certificate) []string
	Now   func() time.Time
	Log   *slog.Logger

	cut func(step string) error // tests die here: before and after each change on disk
}

func (c AuthorityConfig) withDefaults() (AuthorityConfig, error) {
	or := func(d, standard time.Duration) time.Duration {
		if d == 0 {
			return standard
		}
		return d
	}
	c.RootLifetime = or(c.RootLifetime, defaultRootLifetime)
	c.IssuingLifetime = or(c.IssuingLifetime, defaultIssuingLifetime)
	c.SVIDLifetime = or(c.SVIDLifetime, defaultSVIDLifetime)
	c.Now, c.Log = clock(c.Now), logger(c.Log)
	switch {
	case c.TrustDomain.IsZero():
		return c, errors.New("no trust domain")
	case c.Dir == "":
		return c, errors.New("no directory")
	case c.SVIDLifetime < time.Second:
		return c, fmt.Errorf("SVIDs for %s: at least 1s", c.SVIDLifetime)
	case c.IssuingLifetime < 2*c.SVIDLifetime:
		return c, fmt.Errorf("issuing CA for %s, SVIDs for %s: it must last twice as long, or SVIDs are cut short", c.IssuingLifetime, c.SVIDLifetime)
	case c.RootLifetime < 4*c.IssuingLifetime:
		return c, fmt.Errorf("root for %s, issuing CA for %s: it must last four times as long", c.RootLifetime, c.IssuingLifetime)
	}
	return c, nil
}

// Authority is the certificate authority of one trust domain: root, issuing CA, SVIDs.
//
// The root signs issuing CAs only; these have path length 0 and a critical URI name constraint to the domain, and are
// renewed at half-life. An SVID comes with its issuing CA's certificate, so what was issued under the last one stays valid.
//
// Roots change slowly, so that everybody hears of a new one before it is used: at half of its life a successor is made and
// published (Roots); at three quarters, and when nothing holds it, it takes over and the old key is destroyed; the old root is published until
// the last SVID under it has ended. An operator may take each of these steps before its time (Prepare, Publish, Activate), and go back before
// the new root signs (Abort).
type Authority struct {
	cfg     AuthorityConfig
	state   atomic.Pointer[authorityState]
	jwt     jwtSigner
	jwtKeys atomic.Pointer[jwtKeys]

	// heldUntil is when it is looked again what holds the next root; nil: it is not held.
	heldUntil atomic.Pointer[time.Time]
	wake      chan struct{} // holds one: Run looks anew when something is due

	mu       sync.Mutex    // one change at a time
	changed  chan struct{} // guarded by mu; closed when Roots, JWTKeys or the phase of the rotation change
	failed   error         // guarded by mu; of the last step, nil when it went well
	retryAt  time.Time     // guarded by mu; after a failure
	heldTold bool          // guarded by mu; it was logged that the next root is held
}

// authorityState is immutable.
type authorityState struct {
	root     *signer
	prepared *signer           // neither published nor in use; may be nil
	next     *signer           // published, not in use; may be nil
	previous *x509.Certificate // published, its key is gone; may be nil
	issuing  *signer           // nil only while opening
	under    *x509.Certificate // the root that signed issuing
	notes    rotationNotes
}

// signer is a CA certificate with its key.
type signer struct {
	certificate *x509.Certificate
	key         crypto.Signer
	above       []*x509.Certificate // what leads from certificate to a root, without that; none for one that a root has signed
}

// OpenAuthority opens the authority in cfg.Dir, and makes one where there is none at all. Files that are damaged, of another
// domain or don't belong together are an error that names the file; they are never overwritten. So is a root that ended
// while nobody was there to replace it: a new one is a decision about trust, not a repair.
func OpenAuthority(cfg AuthorityConfig) (*Authority, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("trust: authority: %w", err)
	}
	a := &Authority{cfg: cfg, wake: make(chan struct{}, 1)}
	if err := a.open(); err != nil {
		return nil, fmt.Errorf("trust: authority of %s: %w", cfg.TrustDomain, err)
	}
	return a, nil
}

func (a *Authority) open() error {
	state, err := a.load()
	if err != nil {
		return err
	}
	if state == nil {
		if state, err = a.create(); err != nil {
			return err
		}
	}
	if err := a.openJWT(); err != nil {
		return err
	}
	a.state.Store(state)
	if err := a.maintain(a.cfg.Now()); err != nil {
		if a.state.Load().issuing == nil {
			return err
		}
		a.cfg.Log.Warn("authority opened, but not everything that is due could be done", "error", err)
	}
	return a.selfTest()
}

// selfTest issues an SVID and verifies it as a peer would: an authority whose SVIDs nobody accepts should not start.
func (a *Authority) selfTest() error {
	_, csr, err := NewRequest()
	if err != nil {
		return err
	}
	id, err := newID(a.cfg.TrustDomain, "isthmus", "self-test")
	if err != nil {
		return err
	}
	chain, err := a.issue(csr, id, time.Time{})
	if err != nil {
		return err
	}
	b := NewBundles()
	b.Set(a.cfg.TrustDomain, Bundle{Authorities: a.Roots()})
	if _, err := b.Verify(chain, a.cfg.Now()); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	return nil
}

// TrustDomain returns the domain this is the authority of.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.cfg.TrustDomain }

// Roots returns the root certificates to publish: the one in use first, then its successor and its predecessor if any.
func (a *Authority) Roots() []*x509.Certificate { return a.state.Load().roots() }

func (s *authorityState) roots() []*x509.Certificate {
	roots := []*x509.Certificate{s.root.certificate}
	if s.next != nil {
		roots = append(roots, s.next.certificate)
	}
	if s.previous != nil {
		roots = append(roots, s.previous)
	}
	return roots
}

// Changed returns a channel that is closed when Roots, JWTKeys, or the phase of a rotation have changed. To miss nothing: take the channel first, then those.
func (a *Authority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed == nil {
		a.changed = make(chan struct{})
	}
	return a.changed
}

// Issue signs an SVID for the key in csr (PKCS #10, DER; ECDSA P-256) and the identity that the caller has established;
// whatever else csr says is ignored. The chain is the SVID and its issuing CA. It ends with the issuing CA at the latest.
func (a *Authority) Issue(csr []byte, id spiffeid.ID) ([]*x509.Certificate, error) {
	return a.IssueAfter(csr, id, time.Time{})
}

// IssueAfter is Issue for an ID of which what was issued up to a moment is revoked (Bundle.RevokedIDs): the SVID's validity begins after it,
// which may be a second from now.
func (a *Authority) IssueAfter(csr []byte, id spiffeid.ID, after time.Time) ([]*x509.Certificate, error) {
	// As a rule Run was here in time. What failed is told by Run, and here when it keeps us from issuing.
	failed := a.maintain(a.cfg.Now())
	chain, err := a.issue(csr, id, after)
	if err != nil {
		return nil, fmt.Errorf("trust: issue %s: %w", id, errors.Join(err, failed))
	}
	return chain, nil
}

func (a *Authority) issue(csr []byte, id spiffeid.ID, after time.Time) ([]*x509.Certificate, error) {
	return a.state.Load().issuing.issue(a.cfg.TrustDomain, csr, id, a.cfg.Now(), a.cfg.SVIDLifetime, after)
}

// issue signs an SVID and returns it with what leads to a root.
func (s *signer) issue(td spiffeid.TrustDomain, csr []byte, id spiffeid.ID, now time.Time, lifetime time.Duration, after time.Time) ([]*x509.Certificate, error) {
	switch {
	case !id.MemberOf(td):
		return nil, fmt.Errorf("not a member of %s", td)
	case id.Path() == "":
		return nil, errors.New("the ID has no path")
	case len(id.String()) > maxID:
		return nil, fmt.Errorf("the ID is longer than %d bytes", maxID)
	}
	key, err := readRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if !now.Before(s.certificate.NotAfter) {
		return nil, fmt.Errorf("the issuing CA ended at %s", s.certificate.NotAfter.Format(time.RFC3339))
	}
	leaf, err := s.sign(svidTemplate(id, now, lifetime, after), key)
	if err != nil {
		return nil, err
	}
	return append([]*x509.Certificate{leaf, s.certificate}, s.above...), nil
}

// readRequest returns the key that a request asks a certificate for; its signature proves that the asker has it.
func readRequest(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) > maxRequest {
		return nil, fmt.Errorf("%d bytes, at most %d", len(der), maxRequest)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the key is not ECDSA P-256")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	return key, nil
}

// Run renews issuing CA and root in time, until ctx ends.
func (a *Authority) Run(ctx context.Context) error {
	failing := false
	for {
		now := a.cfg.Now()
		err := a.maintain(now)
		if (err != nil) != failing { // once per change
			failing = err != nil
			if failing {
				a.cfg.Log.ErrorContext(ctx, "authority not renewed, trying on", "error", err)
			} else {
				a.cfg.Log.InfoContext(ctx, "authority renewed again")
			}
		}
		pause := authorityNap
		if err == nil {
			pause = min(pause, max(0, a.nextStep().Sub(now)))
		}
		if !nap(ctx, pause, a.wake) {
			return nil
		}
	}
}

func newSigner(template *x509.Certificate, parent *signer) (*signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &signer{certificate: template, key: key}
	if parent == nil {
		parent = s // self-signed
	}
	if s.certificate, err = parent.sign(template, &key.PublicKey); err != nil {
		return nil, err
	}
	return s, nil
}

// sign issues a certificate, which ends with the signer's own at the latest.
func (s *signer) sign(template *x509.Certificate, key *ecdsa.PublicKey) (*x509.Certificate, error) {
	if end := s.certificate.NotAfter; end.Before(template.NotAfter) {
		template.NotAfter = end
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.certificate, key, s.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// AuthorityState is what there is to show of an authority.
type AuthorityState struct {
	Kind         string // KindBuiltIn, KindFiles or KindWorkloadAPI
	Source       string // of an upstream: where it is
	SVIDLifetime time.Duration
	Issuing      *x509.Certificate // the CA that signs SVIDs; nil: somebody else does
	Problem      error             // why the last step failed; nil: it did not
}

// The kinds of authority.
const (
	KindBuiltIn     = "builtin"
	KindFiles       = "files"
	KindWorkloadAPI = "workload-api"
)

// State returns what there is to show.
func (a *Authority) State() AuthorityState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return AuthorityState{Kind: KindBuiltIn, SVIDLifetime: a.cfg.SVIDLifetime, Issuing: a.state.Load().issuing.certificate, Problem: a.failed}
}
