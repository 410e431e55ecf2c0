package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

// read reads and checks the files: a CA that issues nothing which peers take is refused.
func (a *FileAuthority) read() (*upstreamState, [3][sha256.Size]byte, error) {
	var sums [3][sha256.Size]byte
	var data [3][]byte
	for i, path := range []string{a.cfg.Certificate, a.cfg.Key, a.cfg.Bundle} {
		var err error
		if i == 1 {
			data[i], err = readSecret(path)
		} else {
			data[i], err = readPublic(path)
		}
		if err != nil {
			return nil, sums, err
		}
		sums[i] = sha256.Sum256(data[i])
	}
	if sums == a.seen {
		return nil, sums, nil // as it is in use, or waits
	}
	bundle, err := parsePEMAuthorities(data[2])
	if err == nil {
		err = checkBundle(a.cfg.TrustDomain, Bundle{Authorities: bundle}, 0)
	}
	if err != nil {
		return nil, sums, fmt.Errorf("%s: %w", a.cfg.Bundle, err)
	}
	chain, _, err := parseKeyPair(data[0])
	if err == nil {
		err = a.checkChain(chain)
	}
	if err != nil {
		return nil, sums, fmt.Errorf("%s: %w", a.cfg.Certificate, err)
	}
	key, err := parseAnyKey(data[1])
	if err != nil {
		return nil, sums, fmt.Errorf("%s: %w", a.cfg.Key, err)
	}
	if public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return nil, sums, fmt.Errorf("%s and %s: key and certificate don't belong together", a.cfg.Certificate, a.cfg.Key)
	}
	s := &upstreamState{issuing: &signer{certificate: chain[0], key: key}, bundle: bundle}
	for _, c := range chain[1:] {
		if !slices.ContainsFunc(bundle, c.Equal) { // roots are not shown: peers have them
			s.issuing.above = append(s.issuing.above, c)
		}
	}
	if err := a.try(s); err != nil {
		return nil, sums, fmt.Errorf("%s: it can't issue what peers would take by %s: %w", a.cfg.Certificate, a.cfg.Bundle, err)
	}
	return s, sums, nil
}

func (a *FileAuthority) checkChain(chain []*x509.Certificate) error {
	if n := len(chain); n > maxChain-1 {
		return fmt.Errorf("%d certificates, at most %d", n, maxChain-1)
	}
	for i, c := range chain {
		if err := checkAuthority(c); err != nil {
			return fmt.Errorf("certificate %d: %w", i+1, err)
		}
	}
	return nil
}

// try issues an SVID and verifies it as a peer would, and notes the root that it leads to.
func (a *FileAuthority) try(s *upstreamState) error {
	_, csr, err := NewRequest()
	if err != nil {
		return err
	}
	id, err := newID(a.cfg.TrustDomain, "isthmus", "self-test")
	if err != nil {
		return err
	}
	now := a.cfg.Now()
	chain, err := s.issuing.issue(a.cfg.TrustDomain, csr, id, now, a.cfg.SVIDLifetime, time.Time{})
	if err != nil {
		return err
	}
	for _, root := range s.bundle {
		b := NewBundles()
		b.Set(a.cfg.TrustDomain, Bundle{Authorities: []*x509.Certificate{root}})
		if _, failed := b.Verify(chain, now); failed != nil {
			err = failed
			continue
		}
		s.root = root
		return nil
	}
	return err
}

func (a *FileAuthority) loadKept() ([]keptRoot, error) {
	path := filepath.Join(a.cfg.Dir, keptRootsFile)
	data, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var kept []keptRoot
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	for i := range kept {
		if err != nil {
			break
		}
		if kept[i].certificate, err = x509.ParseCertificate(kept[i].Certificate); err == nil {
			err = checkAuthority(kept[i].certificate)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; move it away if no SVID under an older root lives", path, err)
	}
	return kept, nil
}

// parseAnyKey reads one private key, in any of the forms that are about.
func parseAnyKey(data []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(data)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("want one private key, PEM")
	}
	var key any
	var err error
	switch block.Type {
	case pemKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("unexpected PEM block %q", block.Type)
	}
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P224() {
			return nil, errors.New("an ECDSA key on P-224")
		}
		return k, nil
	case *rsa.PrivateKey:
		if k.N.BitLen() < minRSABits {
			return nil, fmt.Errorf("an RSA key of %d bits, at least %d", k.N.BitLen(), minRSABits)
		}
		return k, nil
	}
	return nil, fmt.Errorf("a key of type %T", key)
}
