package manifest_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"
	"sigs.k8s.io/yaml"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
	"github.com/isthmus-mesh/isthmus/topology"
)

// typed decodes a document as a client of Kubernetes does; nil if that is not possible.
func typed(t *testing.T, d *strictyaml.Document) metav1.Object {
	t.Helper()
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(d.Raw, &head); err != nil {
		return nil
	}
	into, ok := map[string]metav1.Object{
		"v1 Service":                                  new(corev1.Service),
		"discovery.k8s.io/v1 EndpointSlice":           new(discoveryv1.EndpointSlice),
		"multicluster.x-k8s.io/v1beta1 ServiceExport": new(mcsv1beta1.ServiceExport),
		"isthmus.dev/v1alpha1 Workload":               new(meshv1alpha1.Workload),
		"isthmus.dev/v1alpha1 ClusterPeer":            new(meshv1alpha1.ClusterPeer),
		"isthmus.dev/v1alpha1 FailoverPolicy":         new(meshv1alpha1.FailoverPolicy),
		"isthmus.dev/v1alpha1 FederatedTrustDomain":   new(meshv1alpha1.FederatedTrustDomain),
	}[head.APIVersion+" "+head.Kind]
	if !ok || d.Decode(into) != nil {
		return nil
	}
	return into
}

// TestConvertAgreesWithParse: of every document of the golden archives, Convert says what Parse says, but for the place.
func TestConvertAgreesWithParse(t *testing.T) {
	compared := 0
	for _, path := range []string{"testdata/good.txtar", "testdata/bad.txtar"} {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range archive.Files {
			documents, err := strictyaml.Documents(file.Name, file.Data)
			if err != nil {
				continue
			}
			for _, d := range documents {
				in := typed(t, &d)
				if in == nil {
					continue
				}
				compared++
				parsed := manifest.Parse(file.Name, d.Raw)
				for i := range parsed.Problems {
					parsed.Problems[i].Source = control.Source{}
				}
				control.SortProblems(parsed.Problems)
				got, problems := manifest.Convert(in)
				if diff := cmp.Diff(parsed.Problems, problems, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s:%d: problems (-Parse +Convert)\n%s", file.Name, d.StartLine, diff)
				}
				if len(parsed.Objects) != 1 {
					continue
				}
				if m := got.Meta(); m.String() != "" {
					t.Errorf("%s:%d: stands at %s", file.Name, d.StartLine, m)
				}
				want := parsed.Objects[0]
				want.Meta().Source = control.Source{}
				if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, topology.ServiceName{}, topology.ClusterName{}, spiffeid.TrustDomain{}, spiffeid.ID{})); diff != "" {
					t.Errorf("%s:%d: (-Parse +Convert)\n%s", file.Name, d.StartLine, diff)
				}
			}
		}
	}
	if compared < 20 {
		t.Errorf("only %d documents compared: the reading went wrong", compared)
	}
}

func TestConvertRefusesOtherKinds(t *testing.T) {
	object, problems := manifest.Convert(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "s"}})
	if object != (manifest.Object{}) || len(problems) != 1 || !strings.Contains(problems[0].Reason, "*v1.Secret is not used here") {
		t.Errorf("%+v, problems %v", object, problems)
	}
}
