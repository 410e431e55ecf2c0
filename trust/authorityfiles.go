package trust

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Files of an authority. A certificate and its key are in one file, so that no crash can part them.
const (
	rootFile         = "root.pem"
	preparedRootFile = "prepared-root.pem" // while a successor is made, and nobody is told
	nextRootFile     = "next-root.pem"     // while a successor is published
	previousRootFile = "previous-root.pem" // while a predecessor is published; its certificate, without a key
	issuingFile      = "issuing.pem"
)

func (a *Authority) path(name string) string { return filepath.Join(a.cfg.Dir, name) }

// create makes a root where there is nothing.
func (a *Authority) create() (*authorityState, error) {
	if err := os.MkdirAll(a.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	root, err := newSigner(rootTemplate(a.cfg.TrustDomain, a.cfg.Now(), a.cfg.RootLifetime), nil)
	if err != nil {
		return nil, err
	}
	if err := a.save(rootFile, root, newFile); err != nil {
		return nil, err
	}
	a.cfg.Log.Info("root made", "trust_domain", a.cfg.TrustDomain.String(), "not_after", root.certificate.NotAfter)
	return &authorityState{root: root}, nil
}

func (a *Authority) save(name string, s *signer, place placement) error {
	data, err := marshalKeyPair([]*x509.Certificate{s.certificate}, s.key)
	if err != nil {
		return err
	}
	return a.write(name, data, place)
}

// write, rename and remove are all that changes the files of an authority. done tells that it has happened, even if it may not last.
func (a *Authority) write(name string, data []byte, place placement) error {
	_, err := a.durably("write "+name, func() (bool, error) { return true, writeFile(a.path(name), data, place) })
	return err
}

func (a *Authority) rename(from, to string) (done bool, err error) {
	return a.durably("rename "+from, func() (bool, error) {
		if err := os.Rename(a.path(from), a.path(to)); err != nil {
			return false, err
		}
		return true, syncDir(a.cfg.Dir)
	})
}

func (a *Authority) remove(name string) (done bool, err error) {
	return a.durably("remove "+name, func() (bool, error) {
		if err := os.Remove(a.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		return true, syncDir(a.cfg.Dir)
	})
}

func (a *Authority) durably(step string, do func() (bool, error)) (done bool, err error) {
	if a.cfg.cut == nil {
		return do()
	}
	if err = a.cfg.cut("before " + step); err != nil {
		return false, err
	}
	if done, err = do(); err != nil {
		return done, err
	}
	if err = a.cfg.cut("after " + step); err != nil {
		return false, err // who died has not seen it happen
	}
	return done, nil
}

// load reads what is there: nil when nothing is. It writes nothing.
//
// Crashes leave these, and they are taken for what they are: a predecessor equal to the root (activation was interrupted
// before it happened), an issuing CA that the predecessor signed (it happened, a new one was not made yet), no issuing CA.
func (a *Authority) load() (*authorityState, error) {
	s := new(authorityState)
	var err error
	if s.root, err = a.loadRoot(rootFile); err != nil {
		return nil, err
	}
	if s.root == nil {
		return nil, a.refuseRemains()
	}
	if s.prepared, err = a.loadRoot(preparedRootFile); err != nil {
		return nil, err
	}
	if s.next, err = a.loadRoot(nextRootFile); err != nil {
		return nil, err
	}
	if s.prepared != nil && s.next != nil {
		return nil, fmt.Errorf("%s and %s: only one successor can be; move the first away, nobody was told of it", a.path(preparedRootFile), a.path(nextRootFile))
	}
	s.notes = a.loadNotes()
	if s.previous, err = a.loadPrevious(); err != nil {
		return nil, err
	}
	if s.previous.Equal(s.root.certificate) {
		s.previous = nil
	}
	if s.notes.Since.After(a.cfg.Now()) { // of another clock
		s.notes = rotationNotes{Retires: s.notes.Retires, RetiresOf: s.notes.RetiresOf}
	}
	if err := s.loadIssuing(a); err != nil {
		return nil, err
	}
	return s, a.checkTimes(s)
}

// refuseRemains: without a root there must be nothing else either, or a root was lost that somebody still trusts.
func (a *Authority) refuseRemains() error {
	for _, name := range []string{preparedRootFile, nextRootFile, previousRootFile, issuingFile, jwtFile} {
		if _, err := os.Lstat(a.path(name)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there but %s is not: restore it from a backup, or empty the directory to start a new authority", a.path(name), rootFile)
		}
	}
	return nil
}

// checkTimes: a root that is not valid now is no use, and most often the clock is what is wrong.
func (a *Authority) checkTimes(s *authorityState) error {
	now, root := a.cfg.Now(), s.root.certificate
	if s.next != nil && !now.Before(root.NotAfter) {
		root = s.next.certificate
	}
	switch {
	case now.Before(root.NotBefore):
		return fmt.Errorf("%s is valid from %s, it is %s now: is the clock right?", a.path(rootFile),
			root.NotBefore.Format(time.RFC3339), now.Format(time.RFC3339))
	case !now.Before(root.NotAfter):
		return fmt.Errorf("%s ended at %s: if the clock is right, empty the directory to start a new authority, which peers must then be told to trust",
			a.path(rootFile), root.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// loadRoot returns nil when there is no such file.
func (a *Authority) loadRoot(name string) (*signer, error) {
	s, err := a.loadSigner(name)
	if s == nil || err != nil {
		return nil, err
	}
	if err := s.certificate.CheckSignatureFrom(s.certificate); err != nil {
		return nil, fmt.Errorf("%s: not a root: %w", a.path(name), err)
	}
	return s, nil
}

func (a *Authority) loadPrevious() (*x509.Certificate, error) {
	path := a.path(previousRootFile)
	data, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // absent is fine, and load copes with a nil certificate
	}
	if err != nil {
		return nil, err
	}
	certs, err := parsePEMAuthorities(data)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case len(certs) != 1:
		return nil, fmt.Errorf("%s: %d certificates, want one", path, len(certs))
	}
	if err := a.checkDomain(certs[0]); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return certs[0], nil
}

func (s *authorityState) loadIssuing(a *Authority) error {
	issuing, err := a.loadSigner(issuingFile)
	if issuing == nil || err != nil {
		return err
	}
	for _, root := range []*x509.Certificate{s.root.certificate, s.previous} {
		if root != nil && issuing.certificate.CheckSignatureFrom(root) == nil {
			s.under = root
		}
	}
	c := issuing.certificate
	switch {
	case s.under == nil:
		return fmt.Errorf("%s: not signed by %s; move it away to have a new one made", a.path(issuingFile), rootFile)
	case !c.MaxPathLenZero || !c.PermittedDNSDomainsCritical || !slices.Equal(c.PermittedURIDomains, []string{a.cfg.TrustDomain.Name()}):
		return fmt.Errorf("%s: not limited to SVIDs of %s; move it away to have a new one made", a.path(issuingFile), a.cfg.TrustDomain)
	}
	s.issuing = issuing
	return nil
}

// loadSigner reads a CA certificate of this domain and its key: nil when there is no such file.
func (a *Authority) loadSigner(name string) (*signer, error) {
	path := a.path(name)
	data, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // absent is not an error to any caller
	}
	if err != nil {
		return nil, err
	}
	s, err := parseSigner(data)
	if err == nil {
		err = a.checkDomain(s.certificate)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func parseSigner(data []byte) (*signer, error) {
	certs, key, err := parseKeyPair(data)
	if err != nil {
		return nil, err
	}
	private, ok := key.(*ecdsa.PrivateKey)
	switch {
	case len(certs) != 1:
		return nil, fmt.Errorf("%d certificates, want one", len(certs))
	case !ok:
		return nil, errors.New("no ECDSA key")
	case !private.PublicKey.Equal(certs[0].PublicKey):
		return nil, errors.New("key and certificate don't belong together")
	}
	if err := checkAuthority(certs[0]); err != nil {
		return nil, err
	}
	return &signer{certificate: certs[0], key: private}, nil
}

// checkDomain: an authority is of one domain, and says so.
func (a *Authority) checkDomain(c *x509.Certificate) error {
	if want := a.cfg.TrustDomain.IDString(); len(c.URIs) != 1 || c.URIs[0].String() != want {
		return fmt.Errorf("belongs to %v, not to %s", c.URIs, want)
	}
	return nil
}
