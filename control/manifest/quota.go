package manifest

import (
	"fmt"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
)

// Limits of a QuotaPolicy.
const (
	maxLimits = 32
	maxRate   = 1_000_000 // requests a second
	maxBurst  = 1_000_000
)

var quotaPer = map[string]string{"Caller": "caller", "EndUser": "end-user", "Service": "service"}

var quotaWindows = map[string]time.Duration{"1s": time.Second, "1m": time.Minute, "1h": time.Hour}

func quotaPolicy(c *checker, in *meshv1alpha1.QuotaPolicy) Object {
	p := &control.QuotaPolicy{Meta: c.meta(&in.ObjectMeta, true, validation.IsDNS1123Subdomain), Generation: in.Generation}
	p.Selects = c.selection(p.Namespace, in.Spec.Selector, in.Spec.TargetRefs)
	p.Audit = c.mode(in.Spec.Mode)
	p.Issuers = c.issuers(in.Spec.Issuers)
	if len(in.Spec.Limits) == 0 {
		c.addf("spec.limits", "is empty: a policy without limits bounds nothing")
	}
	if !c.atMost("spec.limits", len(in.Spec.Limits), maxLimits) {
		return Object{Quota: p}
	}
	names := map[string]int{}
	for i := range in.Spec.Limits {
		l := &in.Spec.Limits[i]
		at := fmt.Sprintf("spec.limits[%d]", i)
		c.label(at+".name", l.Name, "is missing: rate-limit headers, logs and metrics name the limit")
		unique(c, names, l.Name, "spec.limits", i, "the name "+strconv.Quote(l.Name))
		out := control.QuotaLimit{
			Name: l.Name, Per: quotaPer[l.Per], Window: quotaWindows[l.Window], From: c.callers(at+".from", l.From), To: c.operations(at+".to", l.To),
		}
		out.Requests = c.requests(at+".requests", l.Requests, maxRate*max(1, int64(out.Window/time.Second)))
		out.Burst = min(out.Requests, maxBurst)
		if l.Burst != 0 {
			out.Burst = c.requests(at+".burst", l.Burst, maxBurst)
		}
		if out.Per == "" {
			c.addf(at+".per", "%q is not known: want Caller, EndUser or Service", l.Per)
		}
		if out.Per == "end-user" && len(p.Issuers) == 0 {
			c.addf(at+".per", "EndUser needs spec.issuers: whose tokens are believed")
		}
		if out.Window == 0 {
			c.addf(at+".window", "%q is not known: want 1s, 1m or 1h", l.Window)
		}
		switch l.Scope {
		case "", "Replica":
		case "Shared":
			out.Shared = true
		default:
			c.addf(at+".scope", "%q is not known: want Replica or Shared", l.Scope)
		}
		p.Limits = append(p.Limits, out)
	}
	return Object{Quota: p}
}

func (c *checker) requests(field string, n, most int64) uint32 {
	if n < 1 || n > most {
		c.addf(field, "%d: want 1 to %d", n, most)
		return 1
	}
	return uint32(n) //nolint:gosec // G115: an hour's at most
}
