package workload

import (
	"bytes"
	"crypto/x509"

	workloadv1 "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/trust"
)

// FetchX509SVID sends the caller's SVIDs with their keys and all bundles, now and at every change.
func (s *Server) FetchX509SVID(_ *workloadv1.X509SVIDRequest, stream grpc.ServerStreamingServer[workloadv1.X509SVIDResponse]) error {
	return follow(s, stream, needsSVID, func(v view) (*workloadv1.X509SVIDResponse, error) {
		bundles := x509Bundles(s.cfg.Bundles.All())
		out := &workloadv1.X509SVIDResponse{FederatedBundles: bundles}
		for _, id := range v.ids {
			key, err := x509.MarshalPKCS8PrivateKey(id.SVID.PrivateKey)
			if err != nil {
				return nil, status.Errorf(codes.Internal, "the key of %s can't be given out: %v", id.SVID.ID, err)
			}
			out.Svids = append(out.Svids, &workloadv1.X509SVID{
				SpiffeId: id.SVID.ID.String(), X509Svid: concatenated(id.SVID.Certificates), X509SvidKey: key,
				Bundle: bundles[id.SVID.ID.TrustDomain().IDString()], Hint: id.Hint,
			})
		}
		for _, id := range v.ids { // its bundle is beside the SVID; all others are of foreign domains
			delete(bundles, id.SVID.ID.TrustDomain().IDString())
		}
		return out, nil
	})
}

// FetchX509Bundles sends all bundles, now and at every change.
func (s *Server) FetchX509Bundles(_ *workloadv1.X509BundlesRequest, stream grpc.ServerStreamingServer[workloadv1.X509BundlesResponse]) error {
	return follow(s, stream, needsEntitlement, func(view) (*workloadv1.X509BundlesResponse, error) {
		return &workloadv1.X509BundlesResponse{Bundles: x509Bundles(s.cfg.Bundles.All())}, nil
	})
}

// x509Bundles returns the roots of each domain, by its SPIFFE ID, without those that are revoked. A domain without roots is left out: nobody
// of it passes.
func x509Bundles(all map[spiffeid.TrustDomain]trust.Bundle) map[string][]byte {
	out := make(map[string][]byte, len(all))
	for td, b := range all {
		var good []*x509.Certificate
		for _, c := range b.Authorities {
			if _, revoked := b.Revoked[trust.Fingerprint(c)]; !revoked {
				good = append(good, c)
			}
		}
		if len(good) > 0 {
			out[td.IDString()] = concatenated(good)
		}
	}
	return out
}

// concatenated is the API's form of several certificates: DER, one after the other.
func concatenated(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		out.Write(c.Raw)
	}
	return out.Bytes()
}
