package kindlab

import (
	"slices"
	"testing"
)

// TestShop: what a cluster gets, by its place in the playground.
func TestShop(t *testing.T) {
	for _, c := range []struct {
		shop Shop
		want []string
	}{
		{Shop{Cluster: "us", Image: "example/isthmus:1"}, []string{
			"Namespace shop", "Namespace outside", "ServiceAccount shop/checkout", "Deployment shop/checkout", "Service shop/checkout", "ServiceExport shop/checkout",
		}},
		{Shop{Cluster: "eu", Image: "example/isthmus:1", Caller: true}, []string{
			"Namespace shop", "Namespace outside", "ServiceAccount shop/checkout", "Deployment shop/checkout", "Service shop/checkout", "ServiceExport shop/checkout",
			"ServiceAccount shop/web", "Deployment outside/web", "Deployment shop/web",
		}},
	} {
		objects, err := c.shop.objects()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range objects {
			name := o.GetKind() + " "
			if o.GetNamespace() != "" {
				name += o.GetNamespace() + "/"
			}
			got = append(got, name+o.GetName())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s has\n%q, want\n%q", c.shop.Cluster, got, c.want)
		}
	}
}
