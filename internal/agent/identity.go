package agent

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/trust"
)

const (
	maxToken       = 8 << 10 // bytes of a token file
	maxChain       = 8       // certificates of an SVID
	maxCertificate = 16 << 10
)

// Why there is no SVID; each says what to do.
var (
	errNoToken      = errors.New("no join token")
	errTokenRefused = errors.New("control refused the join token (it is good once, and for a while): write a new one to the file")
	errNotAllowed   = errors.New("control does not let this program in; set right what it says, and write a new join token to the file")
	errNoRoots      = errors.New("no roots to know control by: copy trust-bundle.pem from control's state directory to the trust bundle file")
)

// issue gets a certificate for a request: by the SVID as long as it is good, else by the join token. trust.Renewal calls it,
// again and again when it fails.
func (a *Agent) issue(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	chain, err := a.renewOrJoin(ctx, csr)
	if ctx.Err() == nil {
		a.note(ctx, err)
	}
	return chain, err
}

// note keeps why there is no SVID, for the readiness probe. The first failure is in the renewal's log; where the trouble
// becomes another, it is logged here.
func (a *Agent) note(ctx context.Context, err error) {
	before := a.problem.Load()
	if before == nil && err == nil {
		return
	}
	a.problem.Store(err)
	if before != nil && err != nil && kindOf(before) != kindOf(err) {
		a.cfg.Log.WarnContext(ctx, "still no SVID, for another reason", "error", err)
	}
}

// kindOf numbers what is worth another line in the log.
func kindOf(err error) int {
	kinds := []error{errNoToken, errTokenRefused, errNotAllowed, errNoRoots}
	return slices.IndexFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })
}

// renewOrJoin renews what peers would let in, and joins otherwise. A join token that was not tried yet is a second way for
// whom control does not renew: it may have lost its memory of this program, or its keys.
func (a *Agent) renewOrJoin(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	svid, err := a.Identity.SVID()
	if err == nil {
		err = a.unusable(svid.Certificates)
	}
	if err != nil {
		return a.join(ctx, csr)
	}
	chain, err := a.renew(ctx, csr)
	if err == nil {
		return chain, nil
	}
	if token, e := readToken(a.cfg.JoinTokenFile); e != nil || a.isSpent(token) {
		return nil, err
	}
	if chain, e := a.join(ctx, csr); e == nil {
		return chain, nil
	}
	return nil, err
}

// unusable returns why peers would refuse a chain of ours, or nil. Not to know is not to refuse.
func (a *Agent) unusable(chain []*x509.Certificate) error {
	_, err := a.Bundles.Verify(chain, a.cfg.Now())
	if v, ok := errors.AsType[*trust.VerifyError](err); ok && v.Reason == trust.UnknownDomain {
		return nil
	}
	return err
}

func (a *Agent) renew(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	conn, err := a.dial(a.Identity)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c, err := identityv1.NewIdentityClient(conn).Renew(ctx, &identityv1.RenewRequest{Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("agent: renew: %w", err)
	}
	return a.accept(c)
}

func (a *Agent) join(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
	if b, _ := a.Bundles.Get(a.cfg.TrustDomain); len(b.Authorities) == 0 {
		return nil, fmt.Errorf("agent: join: %w (%s)", errNoRoots, orNone(a.cfg.TrustBundleFile))
	}
	token, err := readToken(a.cfg.JoinTokenFile)
	if err != nil {
		return nil, fmt.Errorf("agent: join: %w", err)
	}
	conn, err := a.dial(nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c, err := identityv1.NewIdentityClient(conn).Join(ctx, &identityv1.JoinRequest{Token: token, Csr: csr})
	if code := status.Code(err); code == codes.OK || code == codes.Unauthenticated {
		a.spent = sha256.Sum256([]byte(token))
	}
	switch status.Code(err) {
	case codes.OK:
		return a.accept(c)
	case codes.Unauthenticated:
		return nil, fmt.Errorf("agent: join: %w (%s): %w", errTokenRefused, a.cfg.JoinTokenFile, err)
	case codes.PermissionDenied:
		return nil, fmt.Errorf("agent: join: %w (%s): %w", errNotAllowed, a.cfg.JoinTokenFile, err)
	default:
		return nil, fmt.Errorf("agent: join: %w", err)
	}
}

// isSpent reports whether a token was tried already and is good but once. One of the platform's is good as long as it lasts.
func (a *Agent) isSpent(token string) bool {
	return strings.HasPrefix(token, identityv1.JoinTokenPrefix) && sha256.Sum256([]byte(token)) == a.spent
}

// accept parses what control issued and checks that it is a member of the trust domain whom peers will let in.
func (a *Agent) accept(c *identityv1.Certificate) ([]*x509.Certificate, error) {
	if n := len(c.GetChain()); n == 0 || n > maxChain {
		return nil, fmt.Errorf("agent: control issued a chain of %d certificates: want 1 to %d", n, maxChain)
	}
	var chain []*x509.Certificate
	for _, der := range c.GetChain() {
		if len(der) > maxCertificate {
			return nil, fmt.Errorf("agent: control issued a certificate of %d bytes: want at most %d", len(der), maxCertificate)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("agent: control issued: %w", err)
		}
		chain = append(chain, cert)
	}
	peer, err := a.Bundles.Verify(chain, a.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("agent: control issued what peers refuse: %w", err)
	}
	if !peer.ID.MemberOf(a.cfg.TrustDomain) || peer.ID.String() != c.GetSpiffeId() {
		return nil, fmt.Errorf("agent: control issued an SVID of %s and said %q", peer.ID, c.GetSpiffeId())
	}
	return chain, nil
}

// keep writes a new SVID to disk, for a restart while control is away.
func (a *Agent) keep(svid *x509svid.SVID) error {
	a.cfg.Log.Info("SVID issued", "spiffe_id", svid.ID.String(), "not_after", svid.Certificates[0].NotAfter)
	return trust.SaveSVID(a.cfg.StateDir, svid)
}

// readToken reads the join token. The token must not appear in an error.
func readToken(file string) (string, error) {
	if file == "" {
		return "", fmt.Errorf("%w: no join token file is configured", errNoToken)
	}
	b, err := atomicfile.Read(file, maxToken)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: write one to %s", errNoToken, file)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoToken, err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("%w: %s is empty: write one to it", errNoToken, file)
	}
	return token, nil
}

func orNone(path string) string {
	if path == "" {
		return "none is configured"
	}
	return path
}
