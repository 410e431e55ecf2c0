package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/trust"
)

// maxCSR bounds a certificate request: one of a P-256 key has some 300 bytes.
const maxCSR = 8 << 10

// identityServer gives programs their SVIDs: the first for a token, the next for the one before.
type identityServer struct {
	identityv1.UnimplementedIdentityServer

	directory *directory
	tokens    *tokens
	issuer    issuer
	authority authority
	peer      func(context.Context) (trust.Peer, error) // who is at the other end, verified and not over
	log       *slog.Logger

	attestor     Attestor // nil: only join tokens count
	attestations *attestations
}

// Join trades a join token, or one of the platform's, for the first SVID. What is wrong with the request leaves the token good.
func (s *identityServer) Join(ctx context.Context, r *identityv1.JoinRequest) (*identityv1.Certificate, error) {
	if err := s.elsewhere(); err != nil {
		return nil, err
	}
	if err := checkRequest(r.GetCsr()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	g, undo, err := s.prove(ctx, r.GetToken())
	if err != nil {
		return nil, err
	}
	id, err := s.identify(ctx, g)
	if err != nil {
		if errors.Is(err, errNotLoaded) {
			undo()
		}
		return nil, s.refuse(ctx, "join refused", g.program+"/"+g.name, err)
	}
	c, err := s.issue(ctx, r.GetCsr(), id, g.program, g.name)
	if err != nil {
		undo() // nobody has got anything for it
		return nil, err
	}
	s.log.InfoContext(ctx, "joined", "program", g.program, "name", g.name, "spiffe_id", id.String())
	return c, nil
}

// Renew trades the SVID of the connection for a new one of the same ID.
func (s *identityServer) Renew(ctx context.Context, r *identityv1.RenewRequest) (*identityv1.Certificate, error) {
	if err := s.elsewhere(); err != nil {
		return nil, err
	}
	peer, err := s.peer(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if err = checkRequest(r.GetCsr()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	program, name, err := s.directory.renewable(peer.ID)
	if err != nil {
		return nil, s.refuse(ctx, "renewal refused", peer.ID.String(), err)
	}
	c, err := s.issue(ctx, r.GetCsr(), peer.ID, program, name)
	if err != nil {
		return nil, err
	}
	// Again: what was revoked since the first look is what the new SVID was made to begin after.
	if _, err = s.peer(ctx); err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return c, nil
}

// SignJWT makes a JWT-SVID of the ID of the connection.
func (s *identityServer) SignJWT(ctx context.Context, r *identityv1.SignJWTRequest) (*identityv1.SignJWTResponse, error) {
	if err := s.elsewhere(); err != nil {
		return nil, err
	}
	peer, err := s.peer(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if err = trust.CheckAudience(r.GetAudience()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if _, _, err = s.directory.renewable(peer.ID); err != nil { // who gets no SVID any more gets no token either
		return nil, s.refuse(ctx, "JWT-SVID refused", peer.ID.String(), err)
	}
	if _, blocked := s.issuer.revoked.load().id(peer.ID); blocked {
		return nil, s.refuse(ctx, "JWT-SVID refused", peer.ID.String(), errBlocked)
	}
	token, err := s.authority.SignJWT(peer.ID, r.GetAudience(), 0)
	if err != nil {
		s.log.ErrorContext(ctx, "JWT-SVID not signed", "spiffe_id", peer.ID.String(), "error", err)
		return nil, status.Error(codes.Unavailable, "the authority can't sign now")
	}
	if _, err = s.peer(ctx); err != nil { // as in Renew: a token says when it was made
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return &identityv1.SignJWTResponse{Token: token}, nil
}

func (s *identityServer) refuse(ctx context.Context, what, who string, err error) error {
	if errors.Is(err, configstream.ErrUndecided) {
		return status.Error(codes.Unavailable, err.Error())
	}
	s.log.WarnContext(ctx, what, "peer", who, "error", err) //nolint:sloglint // one of the constants of this file
	return status.Error(codes.PermissionDenied, err.Error())
}

func (s *identityServer) issue(ctx context.Context, csr []byte, id spiffeid.ID, program, name string) (*identityv1.Certificate, error) {
	chain, err := s.issuer.issue(ctx, csr, id)
	if errors.Is(err, errBlocked) {
		return nil, s.refuse(ctx, "SVID refused", id.String(), err)
	}
	if err != nil {
		s.log.ErrorContext(ctx, "SVID not issued", "spiffe_id", id.String(), "error", err)
		return nil, status.Error(codes.Unavailable, "the authority can't issue now")
	}
	if err := s.directory.fleet.joined(program, name, chain[0].NotAfter); err != nil {
		s.log.ErrorContext(ctx, "SVID not given out, the roster can't take it", "spiffe_id", id.String(), "error", err)
		if errors.Is(err, errRosterFull) {
			return nil, status.Error(codes.ResourceExhausted, err.Error())
		}
		return nil, status.Error(codes.Unavailable, "the roster can't be written")
	}
	out := &identityv1.Certificate{SpiffeId: id.String()}
	for _, c := range chain {
		out.Chain = append(out.Chain, c.Raw)
	}
	for _, c := range s.authority.Roots() {
		out.Bundle = append(out.Bundle, c.Raw)
	}
	return out, nil
}

// issuer issues SVIDs to whom that is not refused.
type issuer struct {
	authority authority
	revoked   *revocations
	now       func() time.Time
}

func (c *Control) issuer() issuer { return issuer{c.authority, c.revoked, c.cfg.Now} }

// issue issues an SVID that is good when it returns: after a revocation of the ID it begins later than that, a second at most.
func (i issuer) issue(ctx context.Context, csr []byte, id spiffeid.ID) ([]*x509.Certificate, error) {
	until, blocked := i.revoked.load().id(id)
	if blocked {
		return nil, fmt.Errorf("%s: %w", id, errBlocked)
	}
	chain, err := i.authority.IssueAfter(csr, id, until)
	if err != nil {
		return nil, err
	}
	if wait := chain[0].NotBefore.Sub(i.now()); wait > 0 && !pause(ctx, wait) {
		return nil, context.Cause(ctx)
	}
	i.revoked.note(trust.Fingerprint(chain[0]), id, chain[0].NotAfter)
	return chain, nil
}

// checkRequest takes a PKCS #10 request by whoever holds its P-256 key. Only the key counts; what it asks for does not.
func checkRequest(der []byte) error {
	if len(der) == 0 || len(der) > maxCSR {
		return fmt.Errorf("certificate request of %d bytes: want 1 to %d", len(der), maxCSR)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	if key, ok := r.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return errors.New("certificate request: want an ECDSA P-256 key")
	}
	if err := r.CheckSignature(); err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	return nil
}
