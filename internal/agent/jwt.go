package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
)

const (
	signTimeout = 5 * time.Second // of one call for a JWT-SVID
	// signIdle is how long the connection for them is kept: several are asked for at once, and then none for minutes. Control has so many
	// programs that it can't have two connections of each.
	signIdle = 15 * time.Second
)

var errEnded = errors.New("agent: it has ended")

// signing is the connection for JWT-SVIDs.
type signing struct {
	mu     sync.Mutex
	conn   *grpc.ClientConn // guarded by mu
	closed bool             // guarded by mu
}

// SignJWT has control, or the Workload API that the identity is from, make a JWT-SVID of the program's own identity. Errors keep their gRPC status. It works as long as Run runs.
func (a *Agent) SignJWT(ctx context.Context, audience []string) (string, error) {
	if a.upstream != nil {
		return a.upstream.SignJWT(ctx, audience)
	}
	conn, err := a.signConn()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	r, err := identityv1.NewIdentityClient(conn).SignJWT(ctx, &identityv1.SignJWTRequest{Audience: audience})
	if err != nil {
		return "", fmt.Errorf("agent: JWT-SVID: %w", err)
	}
	return r.GetToken(), nil
}

func (a *Agent) signConn() (*grpc.ClientConn, error) {
	s := &a.signing
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errEnded
	}
	if s.conn == nil {
		conn, err := a.dial(a.Identity, grpc.WithIdleTimeout(signIdle)) // it connects when it is used, each time with the SVID of then
		if err != nil {
			return nil, err
		}
		s.conn = conn
	}
	return s.conn, nil
}

// close ends the connection, for good.
func (s *signing) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		_ = s.conn.Close()
	}
}
