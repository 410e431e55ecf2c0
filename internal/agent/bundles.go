package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/trust"
)

// refusedByPeer is in the error of a TLS connection whose other side refuses the certificate that it was shown (RFC 8446, 6.2): crypto/tls has
// no type for it.
const refusedByPeer = "tls: bad certificate"

const (
	rootsEvery   = time.Second // how often the trust bundle file is looked at while control is away
	maxRootsFile = 256 << 10
)

// feed keeps Bundles what the stream and the trust bundle file say, until ctx ends.
func (a *Agent) feed(ctx context.Context) error {
	look := time.NewTicker(rootsEvery)
	defer look.Stop()
	for {
		bundles, status, cuts := a.Stream.Bundles().Changed(), a.Stream.Status().Changed(), a.Stream.Cuts().Changed()
		var upstream <-chan struct{}
		if a.upstream != nil {
			upstream = a.upstream.Changed()
		}
		cut := a.Stream.Cuts().Load() // before the bundles: those are of it, or newer
		a.updateBundles()
		a.Stream.Applied(cut)
		a.doubt()
		tick := look.C
		if a.Stream.Connected() {
			tick = nil
		}
		select {
		case <-bundles:
		case <-status:
		case <-cuts:
		case <-upstream:
		case <-tick:
		case <-ctx.Done():
			return nil
		}
	}
}

// doubt asks for a new SVID when the present one is of no use any more: it is revoked, or its root is gone, by what control said last, or by
// how control itself takes it. One that has only ended is the renewal's business.
func (a *Agent) doubt() {
	svid, err := a.Identity.SVID()
	if err != nil || a.upstream != nil {
		return
	}
	refused, _ := errors.AsType[*trust.VerifyError](a.unusable(svid.Certificates))
	useless := refused != nil && (refused.Reason == trust.Revoked || refused.Reason == trust.BadChain)
	if s := a.Stream.Status().Load(); !useless && (s.Err == nil || !strings.Contains(s.Err.Error(), refusedByPeer)) {
		return
	}
	select {
	case a.early <- struct{}{}:
	default:
	}
}

// updateBundles puts the bundles in force: what control said last, and beside it the own roots in the file, as long as
// these are news. A root that control has retired must not come back by an old file; but when the file was changed since
// control spoke, and control can't be reached, it may be that control has new roots that it can't tell of.
func (a *Agent) updateBundles() {
	connected := a.Stream.Connected()
	stream := a.Stream.Bundles().Load()
	all := make(map[spiffeid.TrustDomain]trust.Bundle, len(stream)+1)
	for td, b := range stream {
		all[td] = trust.Bundle(b)
	}
	own := all[a.cfg.TrustDomain]
	if a.upstream != nil {
		a.problem.Store(a.upstream.Problem())
		a.roots.content = a.upstream.Roots() // control's word on them is that of the same Workload API, later
	} else {
		a.roots.read()
	}
	if connected && len(own.Authorities) > 0 && a.upstream == nil {
		a.roots.settle()
	}
	if news := a.roots.news(); len(news) > 0 {
		own.Authorities = slices.Clone(own.Authorities)
		for _, root := range news {
			if !slices.ContainsFunc(own.Authorities, root.Equal) {
				own.Authorities = append(own.Authorities, root)
			}
		}
		all[a.cfg.TrustDomain] = own
	}
	a.Bundles.Replace(all)
}

// rootsFile is the trust bundle file: roots that an operator, or control on the same machine, put there.
type rootsFile struct {
	path string
	log  *slog.Logger

	sum     [sha256.Size]byte // of the content
	content []*x509.Certificate
	told    bool
	toldSum [sha256.Size]byte // of the content when control told of its roots
	problem string            // logged already
}

// read reads the file, if there is one. Content that can't be used leaves what was there before.
func (r *rootsFile) read() {
	if r.path == "" {
		return
	}
	b, err := atomicfile.Read(r.path, maxRootsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var certs []*x509.Certificate
	sum := sha256.Sum256(b)
	if err == nil {
		if bytes.Equal(sum[:], r.sum[:]) {
			return
		}
		certs, err = trust.ParsePEM(b)
	}
	if err != nil {
		if err.Error() != r.problem {
			r.problem = err.Error()
			r.log.Error("trust bundle file can't be used", "file", r.path, "error", err)
		}
		return
	}
	r.problem, r.sum, r.content = "", sum, certs
}

// settle notes that control has told of its roots: what the file says now is no news.
func (r *rootsFile) settle() { r.told, r.toldSum = true, r.sum }

// news returns the roots in the file that control has not spoken after.
func (r *rootsFile) news() []*x509.Certificate {
	if r.told && r.sum == r.toldSum {
		return nil
	}
	return r.content
}
