package trust

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	filesEvery = 5 * time.Second // how often the files are looked at
	// keptRootsFile holds roots that an upstream's bundle no longer has, and that SVIDs live under; and those that it had last, for when other
	// files come while control is away.
	keptRootsFile = "upstream-roots.json"
)

// FileConfig is what a FileAuthority is opened with.
type FileConfig struct {
	TrustDomain spiffeid.TrustDomain
	// Certificate, Key and Bundle are files, PEM, as cert-manager writes them (tls.crt, tls.key, ca.crt): an intermediate CA and what leads from it
	// to a root, leaf first; its key; the roots.
	Certificate, Key, Bundle string
	Dir                      string        // holds JWT keys, and roots that are no longer in Bundle; made (0700) when it isn't there
	SVIDLifetime             time.Duration // 1 hour when 0
	// Holds is as in AuthorityConfig, of a root that has come with new files, while the CA before has time.
	Holds func(next *x509.Certificate) []string
	Now   func() time.Time
	Log   *slog.Logger
}

// FileAuthority is an authority whose CA is somebody else's: it comes as files, and is renewed by other files, which are read while it runs. Files
// that can't be used leave what was there before in use.
//
// A CA under a root that is new here is used once everybody has that root, or when the CA before it has no time left. Roots that leave the files are
// published until the last SVID under them has ended.
type FileAuthority struct {
	cfg     FileConfig
	state   atomic.Pointer[upstreamState]
	jwt     jwtSigner
	jwtKeys atomic.Pointer[jwtKeys]

	mu      sync.Mutex
	changed chan struct{}        // guarded by mu
	problem error                // guarded by mu: why the files of now are not in use
	told    string               // guarded by mu: what of that was logged
	seen    [3][sha256.Size]byte // guarded by mu: of the files, when they were last taken
	retryAt time.Time            // guarded by mu: of the JWT keys
	kept    []keptRoot           // guarded by mu
}

// upstreamState is immutable.
type upstreamState struct {
	issuing *signer
	root    *x509.Certificate   // that it leads to
	bundle  []*x509.Certificate // of the files
	kept    []*x509.Certificate
	pending *upstreamState // files that are not used yet; nil: none
	since   time.Time      // when those came
}

// roots are all that is published.
func (s *upstreamState) roots() []*x509.Certificate {
	out := slices.Clone(s.bundle)
	add := func(certs []*x509.Certificate) {
		for _, c := range certs {
			if !slices.ContainsFunc(out, c.Equal) {
				out = append(out, c)
			}
		}
	}
	if s.pending != nil {
		add(s.pending.bundle)
	}
	add(s.kept)
	return out
}

// keptRoot is a root that is no longer in the bundle file; without an end, one that was in it last.
type keptRoot struct {
	Certificate []byte    `json:"certificate"` // DER
	Until       time.Time `json:"until,omitzero"`

	certificate *x509.Certificate
}

// OpenFileAuthority reads the files. What is wrong with them is an error that names the file.
func OpenFileAuthority(cfg FileConfig) (*FileAuthority, error) {
	cfg.Now, cfg.Log = clock(cfg.Now), logger(cfg.Log)
	if cfg.SVIDLifetime == 0 {
		cfg.SVIDLifetime = defaultSVIDLifetime
	}
	if cfg.TrustDomain.IsZero() || cfg.Certificate == "" || cfg.Key == "" || cfg.Bundle == "" || cfg.Dir == "" || cfg.SVIDLifetime < time.Second {
		return nil, errors.New("trust: authority by files: a trust domain, three files, a directory, and SVIDs for at least 1s are required")
	}
	a := &FileAuthority{cfg: cfg}
	if err := a.open(); err != nil {
		return nil, fmt.Errorf("trust: authority of %s by files: %w", cfg.TrustDomain, err)
	}
	return a, nil
}

func (a *FileAuthority) open() error {
	if err := os.MkdirAll(a.cfg.Dir, 0o700); err != nil {
		return err
	}
	a.jwt = jwtSigner{path: filepath.Join(a.cfg.Dir, jwtFile), period: defaultIssuingLifetime, write: writeFile}
	keys, err := a.jwt.load()
	if err != nil {
		return err
	}
	if keys, err = a.jwt.step(keys, a.cfg.Now()); err != nil {
		return err
	}
	a.jwtKeys.Store(&keys)
	known, err := a.loadKept()
	if err != nil {
		return err
	}
	next, sums, err := a.read()
	if err != nil {
		return err
	}
	a.seen = sums
	var before []*x509.Certificate
	for _, k := range known {
		if k.Until.IsZero() {
			before = append(before, k.certificate)
		} else {
			a.kept = append(a.kept, k)
		}
	}
	a.keepLocked(a.keptBeside(next.bundle, before), next.bundle) // nobody else is here yet
	a.put(next)
	return nil
}

// put makes a state the present one, with the roots that are kept beside it.
func (a *FileAuthority) put(s *upstreamState) {
	next := *s
	next.kept = nil
	for _, k := range a.kept {
		next.kept = append(next.kept, k.certificate)
	}
	a.state.Store(&next)
}

// TrustDomain returns the domain this is the authority of.
func (a *FileAuthority) TrustDomain() spiffeid.TrustDomain { return a.cfg.TrustDomain }

// Roots returns the root certificates to publish.
func (a *FileAuthority) Roots() []*x509.Certificate { return a.state.Load().roots() }

// JWTKeys returns the keys to publish that sign JWT-SVIDs: they are made here.
func (a *FileAuthority) JWTKeys() map[string]crypto.PublicKey { return a.jwtKeys.Load().published() }

// Changed returns a channel that is closed when Roots, JWTKeys or the CA have changed.
func (a *FileAuthority) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed == nil {
		a.changed = make(chan struct{})
	}
	return a.changed
}

// Rotation tells of a CA under a new root that is not used yet.
func (a *FileAuthority) Rotation() Rotation {
	s := a.state.Load()
	if s.pending == nil {
		return Rotation{Phase: RotationIdle}
	}
	return Rotation{Phase: RotationPublished, Automatic: true, Since: s.since, Next: s.pending.root, LastCall: a.lastCall(s), NextStep: a.cfg.Now()}
}

// lastCall is when a CA must be replaced, whoever has not the root of the next.
func (a *FileAuthority) lastCall(s *upstreamState) time.Time {
	return s.issuing.certificate.NotAfter.Add(-a.cfg.SVIDLifetime)
}

// State returns what there is to show.
func (a *FileAuthority) State() AuthorityState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return AuthorityState{
		Kind: KindFiles, Source: a.cfg.Certificate, SVIDLifetime: a.cfg.SVIDLifetime, Issuing: a.state.Load().issuing.certificate, Problem: a.problem,
	}
}

// IssueAfter is as Authority.IssueAfter.
func (a *FileAuthority) IssueAfter(csr []byte, id spiffeid.ID, after time.Time) ([]*x509.Certificate, error) {
	chain, err := a.state.Load().issuing.issue(a.cfg.TrustDomain, csr, id, a.cfg.Now(), a.cfg.SVIDLifetime, after)
	if err != nil {
		return nil, fmt.Errorf("trust: issue %s: %w", id, errors.Join(err, a.State().Problem))
	}
	return chain, nil
}

// IssueWeb is as Authority.IssueWeb.
func (a *FileAuthority) IssueWeb(names []string) (*tls.Certificate, error) {
	return a.state.Load().issuing.issueWeb(names, a.cfg.Now())
}

// SignJWT is as Authority.SignJWT.
func (a *FileAuthority) SignJWT(id spiffeid.ID, audience []string, ttl time.Duration) (string, error) {
	if ttl == 0 {
		ttl = MaxJWTLifetime
	}
	token, err := a.jwtKeys.Load().sign(a.cfg.TrustDomain, id, audience, ttl, a.cfg.Now())
	if err != nil {
		return "", fmt.Errorf("trust: JWT-SVID of %s: %w", id, err)
	}
	return token, nil
}

// Run follows the files, until ctx ends.
func (a *FileAuthority) Run(ctx context.Context) error {
	for nap(ctx, filesEvery, nil) {
		a.look()
	}
	return nil
}

// look takes what has changed in the files, and what is due.
func (a *FileAuthority) look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, keysBefore, now := a.state.Load(), *a.jwtKeys.Load(), a.cfg.Now()
	next, sums, err := a.read()
	switch {
	case err != nil:
		a.failLocked(err)
	case sums != a.seen:
		a.problem, a.told, a.seen = nil, "", sums
		a.takeLocked(next)
	default:
		a.problem, a.told = nil, ""
	}
	a.advanceLocked(now)
	if now.After(a.retryAt) {
		keys, err := a.jwt.step(keysBefore, now)
		if err != nil {
			a.retryAt = now.Add(stepRetry)
			a.failLocked(fmt.Errorf("JWT keys: %w", err))
		}
		a.jwtKeys.Store(&keys)
	}
	s := a.state.Load()
	same := slices.EqualFunc(before.roots(), s.roots(), (*x509.Certificate).Equal) && before.issuing.certificate.Equal(s.issuing.certificate) &&
		(before.pending == nil) == (s.pending == nil) && sameKeys(keysBefore, *a.jwtKeys.Load())
	if !same && a.changed != nil {
		close(a.changed)
		a.changed = nil
	}
}

// failLocked notes what is wrong, and tells it once: when it was so twice, as files are not replaced all at once.
func (a *FileAuthority) failLocked(err error) {
	if a.problem != nil && a.problem.Error() == err.Error() && a.told != err.Error() {
		a.told = err.Error()
		a.cfg.Log.Error("new files of the upstream authority can't be used; the last good ones stay in use", "error", err,
			"not_after", a.state.Load().issuing.certificate.NotAfter)
	}
	a.problem = err
}

// takeLocked puts new files to use: the roots at once, and the CA as soon as its root is one that everybody has had.
func (a *FileAuthority) takeLocked(next *upstreamState) {
	s := a.state.Load()
	if slices.ContainsFunc(s.bundle, next.root.Equal) || slices.ContainsFunc(s.kept, next.root.Equal) {
		a.useLocked(next)
		return
	}
	waiting := *s
	waiting.pending, waiting.since = next, a.cfg.Now()
	a.cfg.Log.Info("a new root has come with the files of the upstream authority; its CA is used once everybody has it",
		"not_after", next.root.NotAfter, "at_the_latest", a.lastCall(s))
	a.put(&waiting)
}

// advanceLocked uses a CA that waits when nothing holds it, and lets go of roots that nothing lives under.
func (a *FileAuthority) advanceLocked(now time.Time) {
	s := a.state.Load()
	if s.pending != nil {
		var holds []string
		if a.cfg.Holds != nil {
			holds = a.cfg.Holds(s.pending.root)
		}
		if len(holds) == 0 || !now.Before(a.lastCall(s)) {
			if len(holds) > 0 {
				a.cfg.Log.Error("CA under a new root put to use though not everybody has it: the one before ends", "not_acknowledged", holds)
			}
			a.useLocked(s.pending)
		}
	}
	left := slices.DeleteFunc(slices.Clone(a.kept), func(k keptRoot) bool { return !now.Before(k.Until) })
	if len(left) != len(a.kept) {
		a.keepLocked(left, a.state.Load().bundle)
		a.put(a.state.Load())
	}
}

// useLocked puts a CA to use. Roots that its files don't have stay until what was issued before has ended.
func (a *FileAuthority) useLocked(next *upstreamState) {
	a.keepLocked(a.keptBeside(next.bundle, a.state.Load().bundle), next.bundle)
	used := *next
	used.pending = nil
	a.cfg.Log.Info("new CA of the upstream authority in use", "not_after", next.issuing.certificate.NotAfter)
	a.put(&used)
}

// keptBeside returns the roots that are kept beside a bundle, when another one was in use before.
func (a *FileAuthority) keptBeside(bundle, before []*x509.Certificate) []keptRoot {
	until := a.cfg.Now().Add(a.cfg.SVIDLifetime + retireMargin)
	kept := slices.Clone(a.kept)
	for _, root := range before {
		if slices.ContainsFunc(bundle, root.Equal) {
			continue
		}
		kept = append(kept, keptRoot{Certificate: root.Raw, Until: earlier(until, root.NotAfter), certificate: root})
	}
	return kept
}

func (a *FileAuthority) keepLocked(kept []keptRoot, bundle []*x509.Certificate) {
	a.kept = kept
	all := slices.Clone(kept)
	for _, root := range bundle {
		all = append(all, keptRoot{Certificate: root.Raw})
	}
	data, err := json.Marshal(all)
	if err == nil {
		err = writeFile(filepath.Join(a.cfg.Dir, keptRootsFile), data, replaceFile)
	}
	if err != nil {
		a.cfg.Log.Warn("roots that are published on are not kept on disk", "error", err)
	}
}
