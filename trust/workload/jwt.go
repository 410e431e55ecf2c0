package workload

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/go-jose/go-jose/v4"
	workloadv1 "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/trust"
)

// FetchJWTSVID makes JWT-SVIDs for an audience: of the identity that is named, else of all that the caller has.
func (s *Server) FetchJWTSVID(ctx context.Context, r *workloadv1.JWTSVIDRequest) (*workloadv1.JWTSVIDResponse, error) {
	if err := trust.CheckAudience(r.GetAudience()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	audience := inOrder(r.GetAudience())
	var want spiffeid.ID
	if r.GetSpiffeId() != "" {
		var err error
		if want, err = spiffeid.FromString(r.GetSpiffeId()); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
		}
	}
	v, _, err := s.wait(ctx, needsSVID)
	if err != nil {
		return nil, err
	}
	out := new(workloadv1.JWTSVIDResponse)
	for _, id := range v.ids {
		if !want.IsZero() && want != id.SVID.ID {
			continue
		}
		token, err := s.tokens.get(ctx, id.SVID.ID, audience)
		if err != nil {
			s.cfg.Log.WarnContext(ctx, "workload API: no JWT-SVID", "spiffe_id", id.SVID.ID.String(), "error", err)
			return nil, notSigned(err)
		}
		out.Svids = append(out.Svids, &workloadv1.JWTSVID{SpiffeId: id.SVID.ID.String(), Svid: token, Hint: id.Hint})
	}
	if len(out.GetSvids()) == 0 {
		return nil, status.Errorf(codes.PermissionDenied, "%s is no identity of this caller (%s)", want, v.caller)
	}
	return out, nil
}

// notSigned words a failure to sign for the caller, who can't do anything about most.
func notSigned(err error) error {
	code := status.Code(err)
	if code != codes.PermissionDenied && code != codes.ResourceExhausted {
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}

// inOrder puts audiences in order, each once: the same ones are the same token.
func inOrder(audience []string) []string {
	out := slices.Clone(audience)
	slices.Sort(out)
	return slices.Compact(out)
}

// FetchJWTBundles sends the keys that JWT-SVIDs are verified with, of all domains, now and at every change.
func (s *Server) FetchJWTBundles(_ *workloadv1.JWTBundlesRequest, stream grpc.ServerStreamingServer[workloadv1.JWTBundlesResponse]) error {
	return follow(s, stream, needsEntitlement, func(view) (*workloadv1.JWTBundlesResponse, error) {
		out := &workloadv1.JWTBundlesResponse{Bundles: make(map[string][]byte)}
		for td, b := range s.cfg.Bundles.All() {
			doc, err := jwks(&b)
			if err != nil {
				return nil, status.Errorf(codes.Internal, "the keys of %s can't be told: %v", td.Name(), err)
			}
			out.Bundles[td.IDString()] = doc
		}
		return out, nil
	})
}

// jwks returns a domain's keys as a JWKS document, the same each time. Of a domain that has none there is a document without keys.
func jwks(b *trust.Bundle) ([]byte, error) {
	keys := goodKeys(b)
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, kid := range slices.Sorted(maps.Keys(keys)) {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: keys[kid], KeyID: kid})
	}
	return json.Marshal(set)
}

// ValidateJWTSVID verifies a JWT-SVID that somebody has shown to the caller.
func (s *Server) ValidateJWTSVID(ctx context.Context, r *workloadv1.ValidateJWTSVIDRequest) (*workloadv1.ValidateJWTSVIDResponse, error) {
	if err := trust.CheckAudience([]string{r.GetAudience()}); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	v, _, err := s.wait(ctx, needsEntitlement)
	if err != nil {
		return nil, err
	}
	t, err := VerifyJWT(s.cfg.Bundles, r.GetSvid(), r.GetAudience(), v.now)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(t.Claims)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%v: its claims can't be told: %v", ErrBadToken, err)
	}
	return &workloadv1.ValidateJWTSVIDResponse{SpiffeId: t.ID.String(), Claims: claims}, nil
}
