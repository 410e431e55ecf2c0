package control_test

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// What trust stands on is told with its end, by the metrics and by the admin API.
func TestExpiries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		eu, us := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil), m.start("us", filepath.Join(t.TempDir(), "us"), nil)
		eu.registry.declare(t, checkoutManifest+peerOf(t, us))
		us.registry.declare(t, checkoutManifest+peerOf(t, eu))
		synctest.Wait()
		eu.joined(t, eu.token(t, `{"workload":"shop/checkout-0"}`))
		checkout := eu.join(t, sidecarHello("shop/checkout-0"), eu.token(t, `{"workload":"shop/checkout-0"}`))
		time.Sleep(time.Minute)

		families, err := eu.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]time.Duration{}
		for _, f := range families {
			if f.GetName() != "isthmus_trust_expiry_seconds" {
				continue
			}
			for _, s := range f.GetMetric() {
				labels := map[string]string{}
				for _, l := range s.GetLabel() {
					labels[l.GetName()] = l.GetValue()
				}
				got[labels["what"]+" "+labels["trust_domain"]] = time.Duration(s.GetGauge().GetValue() * float64(time.Second)).Round(time.Minute)
			}
		}
		const day = 24 * time.Hour
		for what, want := range map[string]time.Duration{
			"svid eu.example": 59 * time.Minute, "issuing eu.example": 2*day - time.Minute, "root eu.example": 90*day - time.Minute,
			"member_root eu.example": 90*day - time.Minute, "bundle eu.example": 90*day - time.Minute, "bundle us.example": 90*day - time.Minute,
			"jwt_key eu.example": 2*day - time.Minute,
		} {
			if got[what] != want {
				t.Errorf("%s: %v, want %v", what, got[what], want)
			}
		}
		if len(got) != 7 {
			t.Errorf("metrics: %v", got)
		}

		svid, err := checkout.Identity.SVID()
		if err != nil {
			t.Fatal(err)
		}
		proxies := get[[]admin.Proxy](t, eu, "/v1/proxies")
		if len(proxies) != 1 || !proxies[0].SVIDEnds.Equal(svid.Certificates[0].NotAfter) {
			t.Errorf("%+v, want its SVID to end at %v", proxies, svid.Certificates[0].NotAfter)
		}
		if r := get[admin.Trust](t, eu, "/v1/trust").MemberRoot; r == nil || r.KeyID != eu.Introduction().RootFingerprint || !r.NotAfter.After(time.Now()) {
			t.Errorf("member root %+v", r)
		}
	})
}
