package telemetry

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestExpiries(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	c := Expiries(func() time.Time { return now }, func() []Expiry {
		return []Expiry{
			{What: "svid", TrustDomain: "eu.test", At: now.Add(30 * time.Minute)},
			{What: "bundle", TrustDomain: "us.test", At: now.Add(time.Hour)},
			{What: "bundle", TrustDomain: "us.test", At: now.Add(-time.Minute)}, // the first to end counts
			{What: "bundle", TrustDomain: "ap.test"},                            // not known
		}
	})
	want := `# HELP isthmus_trust_expiry_seconds How long it lasts yet; negative once it is over.
# TYPE isthmus_trust_expiry_seconds gauge
isthmus_trust_expiry_seconds{trust_domain="eu.test",what="svid"} 1800
isthmus_trust_expiry_seconds{trust_domain="us.test",what="bundle"} -60
`
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
