package agent

import (
	"time"

	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Expiries tells when the program's own SVID ends ("svid"), and the last root of each trust domain that it verifies ("bundle").
func (a *Agent) Expiries() []telemetry.Expiry {
	var out []telemetry.Expiry
	if svid, err := a.Identity.SVID(); err == nil {
		out = append(out, telemetry.Expiry{What: "svid", TrustDomain: a.cfg.TrustDomain.Name(), At: svid.Certificates[0].NotAfter})
	}
	for td, b := range a.Bundles.All() {
		var last time.Time
		for _, root := range b.Authorities {
			if root.NotAfter.After(last) {
				last = root.NotAfter
			}
		}
		out = append(out, telemetry.Expiry{What: "bundle", TrustDomain: td.Name(), At: last})
	}
	return out
}
