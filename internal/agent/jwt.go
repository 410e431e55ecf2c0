package agent

import (
	"context"
	"fmt"
	"time"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
)

// signTimeout bounds one call for a JWT-SVID.
const signTimeout = 5 * time.Second

// SignJWT has control make a JWT-SVID of the program's own identity. Errors keep their gRPC status.
func (a *Agent) SignJWT(ctx context.Context, audience []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	conn, err := a.dial(a.Identity)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	r, err := identityv1.NewIdentityClient(conn).SignJWT(ctx, &identityv1.SignJWTRequest{Audience: audience})
	if err != nil {
		return "", fmt.Errorf("agent: JWT-SVID: %w", err)
	}
	return r.GetToken(), nil
}
