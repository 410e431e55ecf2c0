package trust

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxFile is the size of a file of keys or certificates that we are willing to read, in bytes.
const maxFile = 256 << 10

const (
	svidFile = "svid.pem"

	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

// SaveSVID writes chain and key to <dir>/svid.pem, for this user alone (0600; dir is made 0700). One file holds both and is
// replaced as a whole and synced, so that a crash leaves the old SVID or the new one, never a key without its certificate.
func SaveSVID(dir string, svid *x509svid.SVID) error {
	data, err := marshalKeyPair(svid.Certificates, svid.PrivateKey)
	if err != nil {
		return fmt.Errorf("trust: save SVID: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("trust: save SVID: %w", err)
	}
	if err := writeFile(filepath.Join(dir, svidFile), data, replaceFile); err != nil {
		return fmt.Errorf("trust: save SVID: %w", err)
	}
	return nil
}

// LoadSVID reads what SaveSVID wrote: fs.ErrNotExist when there is none. The SVID may have expired meanwhile.
func LoadSVID(dir string) (*x509svid.SVID, error) {
	path := filepath.Join(dir, svidFile)
	data, err := readSecret(path)
	if err != nil {
		return nil, fmt.Errorf("trust: load SVID: %w", err)
	}
	svid, err := x509svid.Parse(data, data)
	if err != nil {
		return nil, fmt.Errorf("trust: load SVID: %s: %w", path, err)
	}
	return svid, nil
}

// MarshalPEM returns certificates as PEM blocks: the form of a trust bundle file.
func MarshalPEM(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		// Writing to memory doesn't fail, and there are no headers that could be bad.
		_ = pem.Encode(&out, &pem.Block{Type: pemCertificate, Bytes: c.Raw})
	}
	return out.Bytes()
}

// ParsePEM reads a trust bundle file: 1 to MaxAuthorities CA certificates and nothing else.
func ParsePEM(data []byte) ([]*x509.Certificate, error) {
	certs, err := parsePEMAuthorities(data)
	if err != nil {
		return nil, fmt.Errorf("trust: trust bundle (PEM): %w", err)
	}
	return certs, nil
}

func parsePEMAuthorities(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%d bytes, at most %d", len(data), maxFile)
	}
	certs, key, err := parseKeyPair(data)
	switch {
	case err != nil:
		return nil, err
	case key != nil:
		return nil, errors.New("it holds a private key")
	case len(certs) > MaxAuthorities:
		return nil, fmt.Errorf("%d authorities, at most %d", len(certs), MaxAuthorities)
	}
	for i, c := range certs {
		if err := checkAuthority(c); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i+1, err)
		}
	}
	return certs, nil
}

// marshalKeyPair returns certificates and their key (PKCS #8) as PEM blocks.
func marshalKeyPair(certs []*x509.Certificate, key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(MarshalPEM(certs), pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})...), nil
}

// parseKeyPair reads one or more certificates and at most one key, and refuses everything else: what we didn't write, we
// don't guess about. It doesn't check that they belong together.
func parseKeyPair(data []byte) (certs []*x509.Certificate, key crypto.Signer, err error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			if len(bytes.TrimSpace(data)) > 0 {
				return nil, nil, errors.New("it holds something that is not PEM")
			}
			break
		}
		// pem.Decode skips what stands before a block.
		if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN ")) {
			return nil, nil, errors.New("it holds something that is not PEM")
		}
		data = rest
		switch block.Type {
		case pemCertificate:
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, err
			}
			certs = append(certs, c)
		case pemKey:
			if key != nil {
				return nil, nil, errors.New("it holds more than one key")
			}
			k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, nil, err
			}
			var ok bool
			if key, ok = k.(crypto.Signer); !ok {
				return nil, nil, fmt.Errorf("a key of type %T can't sign", k)
			}
		default:
			return nil, nil, fmt.Errorf("unexpected PEM block %q", block.Type)
		}
	}
	if len(certs) == 0 {
		return nil, nil, errors.New("it holds no certificate")
	}
	return certs, key, nil
}

// readSecret reads a file of ours that holds a key, and refuses one that everybody on the machine can read.
// The group is let pass: Kubernetes adds it to the files of a volume (fsGroup).
func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // G304: reading the configured directory is the purpose
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	case info.Mode().Perm()&0o007 != 0:
		return nil, fmt.Errorf("%s: mode %#o lets everybody on this machine at a private key; make it 0600", path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return data, nil
}

// readPublic reads a file of certificates, which everybody may read.
func readPublic(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // G304: reading the configured file is the purpose
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return data, err
}

// placement is how a finished temporary file gets its name.
type placement func(from, to string) error

// replaceFile puts a file in place of what is there.
func replaceFile(from, to string) error { return os.Rename(from, to) }

// newFile puts a file where none is: fs.ErrExist otherwise, even when somebody else was faster by a moment.
func newFile(from, to string) error {
	err := os.Link(from, to)
	switch {
	case err == nil:
		return os.Remove(from)
	case errors.Is(err, fs.ErrExist):
		return err
	}
	// A file system without hard links: here the moment between looking and renaming remains.
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fs.ErrExist, err)
	}
	return os.Rename(from, to)
}

// writeFile writes data (0600) beside path, syncs it, places it and syncs the directory.
func writeFile(path string, data []byte, place placement) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // made with 0600
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if e := os.Remove(f.Name()); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err = place(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes names last: a rename is durable once its directory is.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // G304: the configured directory
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
