package manifest_test

import (
	"encoding/pem"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestCABundle: roots of a web server are taken, and told from what is none.
func TestCABundle(t *testing.T) {
	a, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: spiffeid.RequireTrustDomainFromString("web.example"), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	root := a.Roots()[0]
	in := &meshv1alpha1.FederatedTrustDomain{ObjectMeta: metav1.ObjectMeta{Name: "partner"}, Spec: meshv1alpha1.FederatedTrustDomainSpec{
		TrustDomain: "partner.example",
		BundleEndpoint: meshv1alpha1.BundleEndpoint{
			URL: "https://partner.example", Profile: "https_web", CABundle: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})),
		},
	}}
	out, problems := manifest.Convert(in)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if e := out.Domain.Endpoint; len(e.Roots) != 1 || !e.Roots[0].Equal(root) || e.Profile != bundleendpoint.HTTPSWeb || e.Check() != nil {
		t.Errorf("got %+v", e)
	}
	in.Spec.BundleEndpoint.Profile, in.Spec.BundleEndpoint.SPIFFEID = "https_spiffe", "spiffe://third.example/server"
	if _, problems = manifest.Convert(in); len(problems) != 1 || !strings.Contains(problems[0].Reason, "spec.bundleEndpoint.caBundle: of no effect") {
		t.Errorf("got %v", problems)
	}
}
