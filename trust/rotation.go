package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The steps in an authority's life, each from one immutable state to the next. Files are written in an order that leaves a
// readable whole after a crash at any point (see load).

const (
	// stepRetry is the pause after a step failed, for a full disk as a rule, and until it is looked again whether one is still held.
	stepRetry = 10 * time.Second
	// retireMargin is how long a root is published after the last SVID under it has ended: for clocks that are behind.
	retireMargin = 5 * time.Minute
)

// maxRounds: after a sleep past the end of both root and successor, it takes two to come to a root that lives.
const maxRounds = 4

// RotationPhase is how far the change of the root has come.
type RotationPhase string

// The phases of a rotation. Each can be undone until the next; what has signed can't be undone, but by another rotation.
const (
	RotationIdle      RotationPhase = "idle"
	RotationPrepared  RotationPhase = "prepared"  // the next root is made; nobody is told
	RotationPublished RotationPhase = "published" // it is among Roots
	RotationActivated RotationPhase = "activated" // it signs; the old one is among Roots until what it vouches for has ended
)

// Rotation is how far the change of the root has come. Immutable.
type Rotation struct {
	Phase     RotationPhase
	Automatic bool              // begun by the schedule
	Since     time.Time         // of the phase; zero: not known
	NextStep  time.Time         // when the schedule takes the next step, if nothing holds it
	Retires   time.Time         // when the old root leaves Roots; zero: there is none, or it is not known yet
	LastCall  time.Time         // when the next root signs, whatever holds it: what the root signs gets too short
	Next      *x509.Certificate // nil: none is prepared or published
	Previous  *x509.Certificate // nil: none is published
}

// ErrWrongStep tells that a rotation is not where that step can be taken.
var ErrWrongStep = errors.New("trust: the rotation is not there")

// HeldError tells why the next root does not sign yet.
type HeldError struct{ Holds []string }

// Error names what holds.
func (e *HeldError) Error() string {
	return "trust: the next root does not sign yet: " + strings.Join(e.Holds, "; ")
}

// Rotation returns how far the change of the root has come.
func (a *Authority) Rotation() Rotation {
	s := a.state.Load()
	r := Rotation{
		Phase: s.phase(), Automatic: s.notes.Automatic, Since: s.notes.Since, NextStep: s.rootStep(a.cfg), LastCall: s.lastCall(a.cfg),
		Previous: s.previous,
	}
	switch {
	case s.next != nil:
		r.Next = s.next.certificate
	case s.prepared != nil:
		r.Next = s.prepared.certificate
	}
	if s.previous != nil && s.under.Equal(s.root.certificate) {
		r.Retires = s.retireDue()
	}
	return r
}

func (s *authorityState) phase() RotationPhase {
	switch {
	case s.next != nil:
		return RotationPublished
	case s.prepared != nil:
		return RotationPrepared
	case s.previous != nil:
		return RotationActivated
	}
	return RotationIdle
}

// Prepare makes the next root. Nobody is told of it.
func (a *Authority) Prepare() error {
	return a.operate("prepare", func(s *authorityState, now time.Time) (*authorityState, error) {
		if s.prepared != nil || s.next != nil {
			return s, fmt.Errorf("%w: the next root is %s already", ErrWrongStep, s.phase())
		}
		return a.prepare(s, now, false)
	})
}

// Publish puts the next root among Roots.
func (a *Authority) Publish() error {
	return a.operate("publish", func(s *authorityState, now time.Time) (*authorityState, error) {
		if s.prepared == nil {
			return s, fmt.Errorf("%w: no root is prepared, it is %s", ErrWrongStep, s.phase())
		}
		return a.publish(s, now)
	})
}

// Activate puts the next root to use, if nothing holds it (AuthorityConfig.Holds; a *HeldError otherwise), or force is set. The old key is gone
// then.
func (a *Authority) Activate(force bool) error {
	return a.operate("activate", func(s *authorityState, now time.Time) (*authorityState, error) {
		switch {
		case s.next == nil:
			return s, fmt.Errorf("%w: no root is published to be put to use, it is %s", ErrWrongStep, s.phase())
		case s.previous != nil && now.Before(s.lastCall(a.cfg)):
			// Both would have to be published, and the older of them soon be retired: what was signed under it says when.
			return s, fmt.Errorf("%w: the root before the last still lives until %s: wait", ErrWrongStep, s.retireDue().UTC().Format(time.RFC3339))
		}
		if holds := a.holds(s); len(holds) > 0 && !force {
			return s, &HeldError{holds}
		}
		s, err := a.activate(s, now)
		if err != nil {
			return s, err
		}
		if s, err = a.renewIssuing(s, now); err != nil {
			return s, err
		}
		return a.retire(s, now) // notes when
	})
}

// Abort takes the next root away, as long as it does not sign. After that there is no way back: the old key is gone.
func (a *Authority) Abort() error {
	return a.operate("abort", func(s *authorityState, now time.Time) (*authorityState, error) {
		if s.prepared == nil && s.next == nil {
			if s.previous != nil {
				return s, fmt.Errorf("%w: the new root signs, and the old key is gone; only another rotation leads on", ErrWrongStep)
			}
			return s, fmt.Errorf("%w: there is nothing to abort", ErrWrongStep)
		}
		return a.abort(s, now)
	})
}

// operate takes a step that an operator asks for.
func (a *Authority) operate(what string, step func(*authorityState, time.Time) (*authorityState, error)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.state.Load()
	s, err := step(old, a.cfg.Now())
	a.state.Store(s)
	a.tellLocked(old, *a.jwtKeys.Load())
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// tellLocked wakes who waits for Changed, if something did since. The caller holds a.mu.
func (a *Authority) tellLocked(old *authorityState, oldKeys jwtKeys) {
	s := a.state.Load()
	if a.changed != nil && (old.phase() != s.phase() || !slices.EqualFunc(old.roots(), s.roots(), (*x509.Certificate).Equal) ||
		!sameKeys(oldKeys, *a.jwtKeys.Load())) {
		close(a.changed)
		a.changed = nil
	}
	select {
	case a.wake <- struct{}{}: // Run reckons anew when to come again
	default:
	}
}

// holds returns what speaks against using the next root now.
func (a *Authority) holds(s *authorityState) []string {
	if a.cfg.Holds == nil || s.next == nil {
		return nil
	}
	return a.cfg.Holds(s.next.certificate)
}

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
	a.tellLocked(old, oldKeys)
	return a.failed
}

// nextStep is when something is due; it may be past.
func (a *Authority) nextStep() time.Time {
	s := a.state.Load()
	root := s.rootStep(a.cfg)
	if held := a.heldUntil.Load(); held != nil && root.Before(*held) && s.next != nil {
		root = *held
	}
	at := earlier(root, a.jwt.due(*a.jwtKeys.Load()))
	at = earlier(at, s.issuingDue())
	switch {
	case s.previous == nil:
	case s.retiresUnknown():
		at = time.Time{}
	default:
		at = earlier(at, s.retireDue())
	}
	return at
}

// round takes each step that is due, in order.
func (a *Authority) round(s *authorityState, now time.Time) (*authorityState, error) {
	var errs []error
	for _, step := range []func(*authorityState, time.Time) (*authorityState, error){
		a.schedulePublish, a.scheduleActivate, a.renewIssuing, a.retire,
	} {
		next, err := step(s, now)
		if err != nil {
			errs = append(errs, err)
		}
		s = next
	}
	return s, errors.Join(errs...)
}

// rootStep is when the next step of the root's rotation is due by the schedule.
func (s *authorityState) rootStep(cfg AuthorityConfig) time.Time {
	if s.next != nil {
		return s.activateDue(cfg)
	}
	return s.publishDue(cfg)
}

// lastCall is when a root must be replaced, whoever has not heard of its successor yet: what it signs gets too short.
func (s *authorityState) lastCall(cfg AuthorityConfig) time.Time {
	return s.root.certificate.NotAfter.Add(-cfg.IssuingLifetime / 2)
}

// publishDue: at half of the root's life; later after somebody has aborted that.
func (s *authorityState) publishDue(cfg AuthorityConfig) time.Time {
	at := quarters(s.root.certificate, 2)
	if at.Before(s.notes.PausedUntil) {
		at = s.notes.PausedUntil
	}
	return earlier(at, s.lastCall(cfg))
}

// activateDue: at three quarters of the root's life, and when its successor was published for some time.
func (s *authorityState) activateDue(cfg AuthorityConfig) time.Time {
	published := s.notes.Published
	if made := s.next.certificate.NotBefore.Add(backdate); published.Before(made) { // the notes are lost, or of another rotation
		published = made
	}
	at := quarters(s.root.certificate, 3)
	if heard := published.Add(cfg.IssuingLifetime); at.Before(heard) {
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

// retireDue is when the previous root, which there is, has nothing to vouch for any more.
func (s *authorityState) retireDue() time.Time {
	if s.notes.RetiresOf != fingerprintText(s.previous) {
		return s.previous.NotAfter
	}
	return earlier(s.notes.Retires, s.previous.NotAfter)
}

// retiresUnknown tells that nothing is issued any more under the previous root, which there is, and that it is not noted since when.
func (s *authorityState) retiresUnknown() bool {
	return s.notes.RetiresOf != fingerprintText(s.previous) && s.under.Equal(s.root.certificate)
}

// schedulePublish makes and publishes the next root when it is time.
func (a *Authority) schedulePublish(s *authorityState, now time.Time) (*authorityState, error) {
	if s.next != nil || now.Before(s.publishDue(a.cfg)) {
		return s, nil
	}
	var err error
	if s.prepared == nil {
		if s, err = a.prepare(s, now, true); err != nil {
			return s, err
		}
	}
	return a.publish(s, now)
}

// scheduleActivate puts the next root to use when it is time and nothing holds it; past the last call whatever does.
func (a *Authority) scheduleActivate(s *authorityState, now time.Time) (*authorityState, error) {
	a.heldUntil.Store(nil)
	if s.next == nil || now.Before(s.activateDue(a.cfg)) {
		return s, nil
	}
	holds := a.holds(s)
	if now.Before(s.lastCall(a.cfg)) {
		if s.previous != nil {
			holds = append(holds, "the root before the last still lives")
		}
		if len(holds) > 0 {
			until := now.Add(stepRetry)
			a.heldUntil.Store(&until)
			if !a.heldTold {
				a.heldTold = true
				a.cfg.Log.Warn("next root not put to use yet", "held_by", strings.Join(holds, "; "), "at_the_latest", s.lastCall(a.cfg))
			}
			return s, nil
		}
	} else if len(holds) > 0 {
		a.cfg.Log.Error("next root put to use though not everybody has it: the old one ends", "not_acknowledged", strings.Join(holds, "; "))
	}
	a.heldTold = false
	return a.activate(s, now)
}

// prepare makes the next root; nobody is told.
func (a *Authority) prepare(s *authorityState, now time.Time, automatic bool) (*authorityState, error) {
	next, err := newSigner(rootTemplate(a.cfg.TrustDomain, now, a.cfg.RootLifetime), nil)
	if err != nil {
		return s, err
	}
	if err := a.save(preparedRootFile, next, newFile); err != nil {
		return s, err
	}
	a.cfg.Log.Info("next root made", "not_after", next.certificate.NotAfter, "by_schedule", automatic)
	changed := *s
	changed.prepared = next
	a.note(&changed, func(n *rotationNotes) { n.Automatic, n.Since = automatic, now })
	return &changed, nil
}

// publish puts the prepared root among those that everybody is told of.
func (a *Authority) publish(s *authorityState, now time.Time) (*authorityState, error) {
	changed := *s
	changed.next, changed.prepared = s.prepared, nil
	done, err := a.rename(preparedRootFile, nextRootFile)
	if !done {
		return s, err
	}
	a.cfg.Log.Info("next root published", "not_after", changed.next.certificate.NotAfter, "in_use_from", changed.activateDue(a.cfg))
	a.note(&changed, func(n *rotationNotes) { n.Since, n.Published = now, now })
	return &changed, err
}

// activate puts the next root to use. The old key is gone with the rename.
func (a *Authority) activate(s *authorityState, now time.Time) (*authorityState, error) {
	if err := a.write(previousRootFile, MarshalPEM([]*x509.Certificate{s.root.certificate}), replaceFile); err != nil {
		return s, err
	}
	done, err := a.rename(nextRootFile, rootFile)
	if !done {
		return s, err
	}
	a.cfg.Log.Info("next root in use", "not_after", s.next.certificate.NotAfter)
	changed := *s
	changed.previous, changed.root, changed.next = s.root.certificate, s.next, nil
	a.note(&changed, func(n *rotationNotes) { n.Since, n.Activated = now, now })
	return &changed, err
}

// abort forgets the next root.
func (a *Authority) abort(s *authorityState, now time.Time) (*authorityState, error) {
	name := preparedRootFile
	if s.next != nil {
		name = nextRootFile
	}
	done, err := a.remove(name)
	if !done {
		return s, err
	}
	a.cfg.Log.Info("next root dropped before it was used")
	changed := *s
	changed.prepared, changed.next = nil, nil
	a.note(&changed, func(n *rotationNotes) {
		since := now
		if s.previous != nil {
			since = n.Activated // the rotation before goes on where it was
		}
		*n = rotationNotes{Retires: n.Retires, RetiresOf: n.RetiresOf, Since: since, Activated: n.Activated, PausedUntil: now.Add(a.cfg.IssuingLifetime)}
	})
	return &changed, err
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

// retire stops publishing a root once the last SVID under it has ended: none is issued under it since the issuing CA is another root's.
func (a *Authority) retire(s *authorityState, now time.Time) (*authorityState, error) {
	if s.previous == nil {
		return s, nil
	}
	if s.retiresUnknown() {
		changed := *s
		a.note(&changed, func(n *rotationNotes) {
			n.Retires, n.RetiresOf = now.Add(a.cfg.SVIDLifetime+retireMargin), fingerprintText(s.previous)
		})
		s = &changed
	}
	if now.Before(s.retireDue()) {
		return s, nil
	}
	done, err := a.remove(previousRootFile)
	if !done {
		return s, err
	}
	a.cfg.Log.Info("old root no longer published: nothing under it lives", "not_after", s.previous.NotAfter)
	changed := *s
	changed.previous = nil
	a.note(&changed, func(n *rotationNotes) { n.Retires, n.RetiresOf, n.Since = time.Time{}, "", now })
	return &changed, err
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
