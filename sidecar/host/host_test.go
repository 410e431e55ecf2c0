package host

import (
	"errors"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/topology"
)

func TestParse(t *testing.T) {
	checkout, err := topology.NewServiceName("shop", "checkout")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		in   string
		want topology.Query
		err  error
	}{
		{in: "checkout.shop.svc.clusterset.local", want: topology.Query{Service: checkout, Port: 80}},
		{in: "Checkout.Shop.SVC.ClusterSet.Local.:8080", want: topology.Query{Service: checkout, Port: 8080}},
		{in: "checkout.shop.svc.cluster.local:443", want: topology.Query{Service: checkout, Port: 443, Scope: topology.ClusterLocal}},
		{in: "example.org", err: ErrNotMesh},
		{in: "example.org:80", err: ErrNotMesh},
		{in: "", err: ErrNotMesh},
		{in: "127.0.0.1:80", err: ErrNotMesh},
		{in: "[::1]", err: ErrNotMesh},
		{in: "[::1]:80", err: ErrNotMesh},
		{in: "checkout.shop.svc.clusterset.local.evil.org", err: ErrNotMesh},
		{in: "evilclusterset.local", err: ErrNotMesh},
		{in: "clusterset.local", err: ErrMalformed},
		{in: "checkout.shop.clusterset.local", err: ErrMalformed},
		{in: "shop.svc.clusterset.local", err: ErrMalformed},
		{in: "a.checkout.shop.svc.clusterset.local", err: ErrMalformed},
		{in: "-.shop.svc.clusterset.local", err: ErrMalformed},
		{in: "checkout.shop.svc.clusterset.local:", err: ErrMalformed},
		{in: "checkout.shop.svc.clusterset.local:0", err: ErrMalformed},
		{in: "checkout.shop.svc.clusterset.local:080", err: ErrMalformed},
		{in: "checkout.shop.svc.clusterset.local:+80", err: ErrMalformed},
		{in: "checkout.shop.svc.clusterset.local:65536", err: ErrMalformed},
		{in: strings.Repeat("x", 300) + ".svc.clusterset.local", err: ErrMalformed},
	} {
		got, err := Parse(c.in, 80)
		if got != c.want || !errors.Is(err, c.err) || (err != nil) != (c.err != nil) {
			t.Errorf("%q: got %+v, %v", c.in, got, err)
		}
	}
	if _, err := Parse("checkout.shop.svc.clusterset.local", 0); !errors.Is(err, ErrMalformed) {
		t.Errorf("no port and no default: %v", err)
	}
}

// FuzzParse: what is taken can be written out and read again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"checkout.shop.svc.clusterset.local:80", "a.b.svc.cluster.local", "x:y:z", "[::1]:80", ":", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := Parse(s, 80)
		if err != nil {
			return
		}
		again, err := Parse(String(q), q.Port)
		if err != nil || again != q {
			t.Errorf("%q: %+v, then %+v, %v", s, q, again, err)
		}
	})
}
