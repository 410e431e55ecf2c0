package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// The steps in an authority's life, each from one immutable state to the next. Files are written in an order that leaves a
// readable whole after a crash at any point (see load).

// stepRetry is the pause after a step failed, for a full disk as a rule.
const stepRetry = 10 * time.Second

// maxRounds: after a sleep past the end of both root and successor, it takes two to come to a root that lives.
const maxRounds = 4

// maintain does what is due. A step that fails leaves what is there in use, and is tried again after stepRetry.
func (a *Authority) maintain(now time.Time) error {
	if a.state.Load().issuing != nil && now.Before(a.nextStep()) {
		return nil // as a rule, and without a lock
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil && now.Before(a.retryAt) {
		return a.failed
	}
	old := a.state.Load()
	s := old
	for range maxRounds { // more than one only after a long sleep
		before := s
		s, a.failed = a.round(s, now)
		if a.failed != nil || s == before {
			break
		}
	}
	a.state.Store(s)
	oldKeys := *a.jwtKeys.Load()
	keys, err := a.jwt.step(oldKeys, now)
	if err != nil {
		a.failed = errors.Join(a.failed, fmt.Errorf("JWT keys: %w", err))
	}
	a.jwtKeys.Store(&keys)
	a.retryAt = now.Add(stepRetry)
	if a.changed != nil && (!slices.EqualFunc(old.roots(), s.roots(), (*x509.Certificate).Equal) || !sameKeys(oldKeys, keys)) {
		close(a.changed)
		a.changed = nil
	}
	return a.failed
}

// nextStep is when something is due; it may be past.
func (a *Authority) nextStep() time.Time {
	return earlier(a.state.Load().nextStep(a.cfg), a.jwt.due(*a.jwtKeys.Load()))
}

// round takes each step that is due, in order.
func (a *Authority) round(s *authorityState, now time.Time) (*authorityState, error) {
	var errs []error
	for _, step := range []func(*authorityState, time.Time) (*authorityState, error){
		a.prepare, a.activate, a.renewIssuing, a.retire,
	} {
		next, err := step(s, now)
		if err != nil {
			errs = append(errs, err)
		}
		s = next
	}
	return s, errors.Join(errs...)
}

// nextStep is when something of the X.509 side is due; it may be past.
func (s *authorityState) nextStep(cfg AuthorityConfig) time.Time {
	at := s.issuingDue()
	root := s.prepareDue(cfg)
	if s.next != nil {
		root = s.activateDue(cfg)
	}
	if root.Before(at) {
		at = root
	}
	if s.previous != nil && s.previous.NotAfter.Before(at) {
		at = s.previous.NotAfter
	}
	return at
}

// lastCall is when a root must be replaced, whoever has not heard of its successor yet: what it signs gets too short.
func (s *authorityState) lastCall(cfg AuthorityConfig) time.Time {
	return s.root.certificate.NotAfter.Add(-cfg.IssuingLifetime / 2)
}

func (s *authorityState) prepareDue(cfg AuthorityConfig) time.Time {
	return earlier(quarters(s.root.certificate, 2), s.lastCall(cfg))
}

// activateDue: at three quarters of the root's life, and when its successor was published for some time.
func (s *authorityState) activateDue(cfg AuthorityConfig) time.Time {
	at := quarters(s.root.certificate, 3)
	if heard := s.next.certificate.NotBefore.Add(backdate + cfg.IssuingLifetime); at.Before(heard) {
		at = heard
	}
	return earlier(at, s.lastCall(cfg))
}

// issuingDue: at half-life; at once when its root was replaced; never when a new one would end no later.
func (s *authorityState) issuingDue() time.Time {
	switch {
	case s.issuing == nil || !s.under.Equal(s.root.certificate):
		return time.Time{}
	case !s.issuing.certificate.NotAfter.Before(s.root.certificate.NotAfter):
		return s.root.certificate.NotAfter
	default:
		return quarters(s.issuing.certificate, 2)
	}
}

// prepare makes the next root; published from now on.
func (a *Authority) prepare(s *authorityState, now time.Time) (*authorityState, error) {
	if s.next != nil || now.Before(s.prepareDue(a.cfg)) {
		return s, nil
	}
	next, err := newSigner(rootTemplate(a.cfg.TrustDomain, now, a.cfg.RootLifetime), nil)
	if err != nil {
		return s, err
	}
	if err := a.save(nextRootFile, next, newFile); err != nil {
		return s, err
	}
	a.cfg.Log.Info("next root made and published", "not_after", next.certificate.NotAfter, "in_use_from", quarters(s.root.certificate, 3))
	changed := *s
	changed.next = next
	return &changed, nil
}

// activate puts the next root to use. The old key is gone with the rename.
func (a *Authority) activate(s *authorityState, now time.Time) (*authorityState, error) {
	if s.next == nil || now.Before(s.activateDue(a.cfg)) {
		return s, nil
	}
	if err := writeFile(a.path(previousRootFile), MarshalPEM([]*x509.Certificate{s.root.certificate}), replaceFile); err != nil {
		return s, err
	}
	if err := os.Rename(a.path(nextRootFile), a.path(rootFile)); err != nil {
		return s, err
	}
	a.cfg.Log.Info("next root in use", "not_after", s.next.certificate.NotAfter)
	changed := *s
	changed.previous, changed.root, changed.next = s.root.certificate, s.next, nil
	return &changed, syncDir(a.cfg.Dir)
}

// renewIssuing makes a new issuing CA. One that can't be saved is used all the same: what it signed proves itself by its
// chain, and after a restart there is the old one, or a new one.
func (a *Authority) renewIssuing(s *authorityState, now time.Time) (*authorityState, error) {
	if now.Before(s.issuingDue()) || !now.Before(s.root.certificate.NotAfter) {
		return s, nil
	}
	issuing, err := newIssuing(a.cfg, s.root, now)
	if err != nil {
		return s, err
	}
	changed := *s
	changed.issuing, changed.under = issuing, s.root.certificate
	if err := a.save(issuingFile, issuing, replaceFile); err != nil {
		a.cfg.Log.Warn("new issuing CA in use, but not kept on disk", "not_after", issuing.certificate.NotAfter, "error", err)
		return &changed, nil
	}
	a.cfg.Log.Info("new issuing CA in use", "not_after", issuing.certificate.NotAfter)
	return &changed, nil
}

// retire stops publishing a root that has ended.
func (a *Authority) retire(s *authorityState, now time.Time) (*authorityState, error) {
	if s.previous == nil || now.Before(s.previous.NotAfter) {
		return s, nil
	}
	if err := os.Remove(a.path(previousRootFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	changed := *s
	changed.previous = nil
	return &changed, syncDir(a.cfg.Dir)
}

func newIssuing(cfg AuthorityConfig, root *signer, now time.Time) (*signer, error) {
	return newSigner(issuingTemplate(cfg.TrustDomain, now, cfg.IssuingLifetime), root)
}

// quarters is the moment when n quarters of the life of a certificate of ours are over, counted from its making.
func quarters(c *x509.Certificate, n time.Duration) time.Time {
	made := c.NotBefore.Add(backdate)
	return made.Add(c.NotAfter.Sub(made) / 4 * n)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
