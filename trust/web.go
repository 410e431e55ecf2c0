package trust

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// PublicServerConfig returns the configuration of a server that tells everybody the same, and is known by its SVID. Clients show nothing.
func PublicServerConfig(identity *Identity, protocols ...string) *tls.Config {
	c := TLS{Protocols: protocols}.base()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if identity == nil {
			return nil, ErrNoIdentity
		}
		return identity.tlsCertificate()
	}
	return c
}

// WebClientConfig returns the configuration of a client of a web server, which is known by its DNS name: by these roots, or by the system's
// when there are none. It speaks TLS 1.2 too: such a server is somebody else's.
func WebClientConfig(roots []*x509.Certificate) *tls.Config {
	c := TLS{}.base()
	c.MinVersion = tls.VersionTLS12
	if len(roots) > 0 {
		c.RootCAs = certificatePool(roots)
	}
	return c
}

// webFilesEvery is how often the files of a WebFiles are looked at, at most.
const webFilesEvery = time.Second

// WebFiles is who a web server is by a certificate for its DNS name that others renew, in files: a chain and its key, both PEM. New content is
// taken up in a handshake; what can't be used leaves the last good in force.
type WebFiles struct {
	chain, key string
	now        func() time.Time
	log        *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu
	looked  time.Time        // guarded by mu
	content [2][]byte        // guarded by mu; that was looked at last
	problem string           // guarded by mu; logged already
}

// OpenWebFiles reads the files. A nil now is time.Now.
func OpenWebFiles(chain, key string, now func() time.Time, log *slog.Logger) (*WebFiles, error) {
	w := &WebFiles{chain: chain, key: key, now: clock(now), log: logger(log)}
	if err := w.look(); err != nil {
		return nil, fmt.Errorf("trust: certificate of a web server: %w", err)
	}
	return w, nil
}

// Config returns a server's configuration for HTTP. Clients are not asked for certificates. It speaks TLS 1.2 too.
func (w *WebFiles) Config() *tls.Config {
	c := TLS{Protocols: []string{"http/1.1"}}.base()
	c.MinVersion = tls.VersionTLS12
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return w.certificate(), nil }
	return c
}

func (w *WebFiles) certificate() *tls.Certificate {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if since := now.Sub(w.looked); since >= 0 && since < webFilesEvery {
		return w.current
	}
	w.looked = now
	if err := w.look(); err != nil && err.Error() != w.problem {
		w.problem = err.Error()
		w.log.Error("certificate can't be renewed from its files", "error", err)
	}
	return w.current
}

// look reads the files and takes what is new. The caller holds mu, or nobody else has w.
func (w *WebFiles) look() error {
	chain, err := readPublic(w.chain)
	if err != nil {
		return err
	}
	key, err := readSecret(w.key)
	if err != nil {
		return err
	}
	if w.current != nil && bytes.Equal(chain, w.content[0]) && bytes.Equal(key, w.content[1]) {
		return nil
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return fmt.Errorf("%s, %s: %w", w.chain, w.key, err) // between two writes they don't belong together: the next look is soon
	}
	if pair.Leaf == nil {
		return errors.New("no leaf")
	}
	w.current, w.content, w.problem = &pair, [2][]byte{chain, key}, ""
	return nil
}
