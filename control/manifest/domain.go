package manifest

import (
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

func federatedTrustDomain(c *checker, in *meshv1alpha1.FederatedTrustDomain) Object {
	at := &in.Spec.BundleEndpoint
	d := &control.FederatedTrustDomain{
		Meta:       c.meta(&in.ObjectMeta, false, validation.IsDNS1123Subdomain),
		Domain:     c.trustDomain("spec.trustDomain", in.Spec.TrustDomain),
		Endpoint:   bundleendpoint.Endpoint{URL: at.URL, Profile: bundleendpoint.Profile(at.Profile)},
		Generation: in.Generation,
	}
	const endpoint = "spec.bundleEndpoint."
	before := len(c.errs)
	for _, f := range []struct{ field, value string }{{"url", at.URL}, {"profile", at.Profile}} {
		if f.value == "" {
			c.addf(endpoint+f.field, "is missing")
		}
	}
	if at.SPIFFEID != "" {
		id, err := spiffeid.FromString(at.SPIFFEID)
		if err != nil {
			c.addf(endpoint+"spiffeID", "%q: %v", at.SPIFFEID, err)
		}
		d.Endpoint.ID = id
	}
	if at.CABundle != "" {
		roots, err := trust.ParsePEM([]byte(at.CABundle))
		if err != nil {
			c.addf(endpoint+"caBundle", "%v", err)
		}
		d.Endpoint.Roots = roots
	}
	if len(c.errs) == before {
		if err := d.Endpoint.Check(); err != nil {
			field, reason, _ := strings.Cut(err.Error(), ": ")
			c.addf(endpoint+field, "%s", reason)
		}
	}
	switch {
	case in.Spec.Bundle != "" && !d.Domain.IsZero():
		d.Initial = []byte(in.Spec.Bundle)
		if _, _, err := trust.ParseBundle(d.Domain, d.Initial); err != nil {
			c.addf("spec.bundle", "%v", err)
		}
	case in.Spec.Bundle == "" && !d.Endpoint.ID.IsZero() && d.Endpoint.ID.MemberOf(d.Domain):
		c.addf("spec.bundle", "is missing: the server of the bundle is known by an SVID of the same trust domain")
	}
	return Object{Domain: d}
}
