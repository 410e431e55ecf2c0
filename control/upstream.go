package control

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/upstream"
)

// upstreamPatience is how long control waits for its identity from a Workload API when it starts.
const upstreamPatience = 30 * time.Second

var errElsewhere = errors.New("the SVIDs of this trust domain come from a SPIFFE Workload API, and control issues none: " +
	"name its socket in the program's configuration (identity.workloadAPI)")

// workloadAuthority is the authority of a trust domain of which somebody else issues the SVIDs.
type workloadAuthority struct {
	*upstream.Source

	address string
}

// openWorkloadAuthority asks the Workload API for control's own identity.
func (c *Control) openWorkloadAuthority() (*workloadAuthority, error) {
	id, err := trust.ControlID(c.cfg.Domain)
	if err != nil {
		return nil, err
	}
	s, err := upstream.New(upstream.Config{
		Address: c.cfg.UpstreamAPI, TrustDomain: c.cfg.Domain, ID: id, Identity: c.identity, Log: c.cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), upstreamPatience)
	defer cancel()
	if err = s.Fetch(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &workloadAuthority{s, c.cfg.UpstreamAPI}, nil
}

// Run follows the other side until ctx ends.
func (a *workloadAuthority) Run(ctx context.Context) error {
	return errors.Join(a.Source.Run(ctx), a.Close())
}

// IssueAfter issues nothing.
func (a *workloadAuthority) IssueAfter([]byte, spiffeid.ID, time.Time) ([]*x509.Certificate, error) {
	return nil, errElsewhere
}

// IssueWeb issues nothing.
func (a *workloadAuthority) IssueWeb([]string) (*tls.Certificate, error) {
	return nil, fmt.Errorf("%w: the webhook that injects sidecars needs a certificate by DNS name: run control with another authority", errElsewhere)
}

// SignJWT signs nothing.
func (a *workloadAuthority) SignJWT(spiffeid.ID, []string, time.Duration) (string, error) {
	return "", errElsewhere
}

// JWTKeys are those of the other side.
func (a *workloadAuthority) JWTKeys() map[string]crypto.PublicKey { return a.Source.JWTKeys() }

// State returns what there is to show.
func (a *workloadAuthority) State() trust.AuthorityState {
	return trust.AuthorityState{Kind: trust.KindWorkloadAPI, Source: a.address, SVIDLifetime: time.Hour, Problem: a.Problem()}
}

// Rotation is the other side's business.
func (a *workloadAuthority) Rotation() trust.Rotation {
	return trust.Rotation{Phase: trust.RotationIdle}
}

// elsewhere refuses, in the words of gRPC, what the authority does not do.
func (s *identityServer) elsewhere() error {
	if _, is := s.authority.(*workloadAuthority); is {
		return status.Error(codes.FailedPrecondition, errElsewhere.Error())
	}
	return nil
}
