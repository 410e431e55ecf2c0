package check

import (
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// Whatever trust stands on is renewed long before it ends. What has less than a third of its life left was not renewed as it should be; with
// less than a sixth somebody must see to it.
const (
	lifeNoted = 1.0 / 3
	lifeFound = 1.0 / 6
)

// rotationHeld is how long a rotation may wait for a member before somebody should know; for a day, and something is wrong.
const (
	rotationHeld     = 10 * time.Minute
	rotationHeldMost = 24 * time.Hour
)

// Expiring is something that was not renewed when it should have been.
type Expiring struct {
	What     string // "issuing CA", "bundle of us.test"
	NotAfter time.Time
	Finding  bool // it must not stay so; else somebody should know
	now      time.Time
}

// String says it in words.
func (e *Expiring) String() string {
	left := e.NotAfter.Sub(e.now)
	if left <= 0 {
		return sprintf("%s ended %s", e.What, e.NotAfter.UTC().Format(time.RFC3339))
	}
	return sprintf("%s ends in %s (%s), and was not renewed", e.What, days(left), e.NotAfter.UTC().Format(time.RFC3339))
}

// days says a time span without what doesn't matter.
func days(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return sprintf("%dd", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return sprintf("%dh", int(d.Hours()))
	case d >= 2*time.Minute:
		return sprintf("%dm", int(d.Minutes()))
	default:
		return sprintf("%ds", int(d.Seconds()))
	}
}

// LateRenewals lists what of a cluster's trust has less than a third of its life left, first what ends first.
func LateRenewals(t *admin.Trust, proxies []admin.Proxy) []Expiring {
	var out []Expiring
	add := func(what string, begins, ends time.Time) {
		life, left := ends.Sub(begins), ends.Sub(t.Now)
		if ends.IsZero() || life <= 0 || float64(left) >= lifeNoted*float64(life) {
			return
		}
		out = append(out, Expiring{What: what, NotAfter: ends, Finding: float64(left) < lifeFound*float64(life), now: t.Now})
	}
	if c := t.Authority.Issuing; c != nil {
		add("the issuing CA", c.NotBefore, c.NotAfter)
	}
	if c := t.Authority.JWTKey; c != nil { // it is replaced when its time is over, and not before
		add("the key that signs JWT-SVIDs", c.NotBefore, c.NotAfter.Add(c.NotAfter.Sub(c.NotBefore)))
	}
	if c := t.MemberRoot; c != nil {
		add("the federation's member root", c.NotBefore, c.NotAfter)
	}
	for i := range t.Domains {
		d := &t.Domains[i]
		if d.State == "Revoked" || len(d.Roots) == 0 {
			continue
		}
		last := slices.MaxFunc(d.Roots, func(a, b admin.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		add("the last root of "+d.TrustDomain, last.NotBefore, last.NotAfter)
		for _, r := range d.Roots {
			// The next root takes over when a quarter is left: this one is held.
			if life := r.NotAfter.Sub(r.NotBefore); r.State == "active" && r != last && float64(r.NotAfter.Sub(t.Now)) < lifeFound*float64(life) {
				add("the root of "+d.TrustDomain+" that signs", r.NotBefore, r.NotAfter)
			}
		}
	}
	if life := t.Authority.SVIDLifetime; life > 0 {
		for _, p := range proxies {
			if p.Connected && !p.SVIDEnds.IsZero() {
				add(strings.TrimSpace("the SVID of "+p.Program+" "+p.Name), p.SVIDEnds.Add(-life), p.SVIDEnds)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Expiring) int { return a.NotAfter.Compare(b.NotAfter) })
	return out
}

// HeldRotation says who holds a rotation, and whether for long; empty: nobody for long.
func HeldRotation(t *admin.Trust) (text string, finding bool) {
	r := &t.Rotation
	held := t.Now.Sub(r.Since)
	if r.Phase != admin.RotationPublished || len(r.Holds) == 0 || r.Since.IsZero() || held < rotationHeld {
		return "", false
	}
	holds := r.Holds
	if n := len(holds) - namesMost; n > 0 {
		holds = append(slices.Clone(holds[:namesMost]), sprintf("and %d more", n))
	}
	return sprintf("the next root is published for %s, and held: %s", days(held), strings.Join(holds, "; ")), held >= rotationHeldMost
}

// trusted makes a judge of what control says of trust.
func trusted(f func(*Control, *admin.Trust) verdict) func(*Cluster) verdict {
	return said(func(s *Control) verdict {
		if s.Trust.Err != nil {
			return unknown(s.Trust.Err)
		}
		if s.Trust.Value == nil {
			return skipped("control is older than this check")
		}
		return f(s, s.Trust.Value)
	})
}

var afterExpiry = one{
	Check{
		"IST7115", "Expiry", "all that trust stands on has more than a third of its life left: it renews itself before",
		"isthmus trust show DOMAIN says which. Of control's own: its log says why it was not renewed (authority not renewed). Of an upstream: renew it there. Of a peer: see IST7111, and this check in its cluster. A member root is not renewed while the federation's root key is offline: bring it back for a minute.",
	}, after, false, trusted(func(s *Control, t *admin.Trust) verdict {
		v := verdict{status: OK}
		for _, e := range LateRenewals(t, s.Status.Proxies) {
			v.found = append(v.found, e.String())
			if e.Finding {
				v.status = Failed
			} else if v.status == OK {
				v.status = Warning
			}
		}
		if p := t.Authority.Problem; p != "" {
			v.found = append(v.found, "the authority: "+p)
			v.status = Failed
		}
		return v
	}),
}

var afterRotation = one{
	Check{
		"IST7116", "Rotation of the root", "nobody holds it for longer than ten minutes",
		"isthmus trust rotate DOMAIN --status names who. Start what is named, or take it away (isthmus peer remove; DELETE of a proxy that is gone); at last isthmus trust rotate DOMAIN --activate --force: who has not heard refuses the new identities until it has.",
	}, after, false, trusted(func(_ *Control, t *admin.Trust) verdict {
		switch text, bad := HeldRotation(t); {
		case bad:
			return failed(text)
		case text != "":
			return warning(text)
		default:
			return ok(t.Rotation.Phase)
		}
	}),
}

var afterRevocations = one{
	Check{
		"IST7117", "Revocations", "none is in force that stays until somebody undoes it",
		"Whole trust domains and blocked identities stay revoked; keys do too, which is no reason to worry. When the reason is gone: isthmus trust revoke SUBJECT --undo.",
	}, after, false, trusted(func(_ *Control, t *admin.Trust) verdict {
		var stay []string
		for _, r := range t.Revocations {
			if Stays(&r) {
				text := sprintf("%s since %s", r.Subject, r.At.UTC().Format(time.RFC3339))
				if r.Reason != "" {
					text += ": " + r.Reason
				}
				stay = append(stay, text)
			}
		}
		if len(stay) > 0 {
			return warning(stay...)
		}
		return ok(sprintf("%d of keys and of what was issued", len(t.Revocations)))
	}),
}

var afterRoots = one{
	Check{
		"IST7118", "Roots of trust domains", "no two trust domains have a root's key in common",
		"Who has that key can issue identities of both. Give each domain a root of its own, at the upstream or by isthmus trust rotate.",
	}, after, false, trusted(func(_ *Control, t *admin.Trust) verdict {
		of := map[string]string{}
		var found []string
		for _, d := range t.Domains {
			for _, r := range d.Roots {
				if other, taken := of[r.KeyID]; taken && other != d.TrustDomain {
					found = append(found, sprintf("%s and %s both have the root %s", other, d.TrustDomain, r.KeyID))
				}
				of[r.KeyID] = d.TrustDomain
			}
		}
		return faults(found, sprintf("%d domains", len(t.Domains)))
	}),
}

// trustBetween is a check of all clusters together.
var trustBetween = several{
	Check{
		"IST7206", "Trust both ways", "clusters that trust each other do so both ways, by each other's present bundle",
		"isthmus trust peers shows it as a matrix. A bundle travels within seconds: see IST7203 and IST7111. One way: isthmus peer accept, or isthmus trust revoke DOMAIN --undo, in the other.",
	}, func(all []*Cluster) verdict {
		var found []string
		for _, from := range all {
			for _, to := range all {
				if from != to {
					found = append(found, untrusting(from, to)...)
				}
			}
		}
		if len(found) > 0 {
			return warning(found...)
		}
		return ok()
	},
}

// untrusting says what is wrong with the trust of one cluster in another, as far as both say.
func untrusting(from, to *Cluster) (found []string) {
	a, b := from.Control.Value.Trust.Value, to.Control.Value.Trust.Value
	if a == nil || b == nil {
		return nil
	}
	there, own, back := domainOf(a, b.TrustDomain), domainOf(b, b.TrustDomain), domainOf(b, a.TrustDomain)
	if !Lets(there) {
		return nil
	}
	if !Lets(back) {
		found = append(found, sprintf("%s trusts %s, which does not trust it", from.Cluster(), to.Cluster()))
	}
	if own != nil && there.Sequence < own.Sequence {
		found = append(found, sprintf("%s has an older bundle of %s than that has itself", from.Cluster(), to.Cluster()))
	}
	return found
}

func domainOf(t *admin.Trust, name string) *admin.TrustedDomain {
	i := slices.IndexFunc(t.Domains, func(d admin.TrustedDomain) bool { return d.TrustDomain == name })
	if i < 0 {
		return nil
	}
	return &t.Domains[i]
}

// Trusts reports whether a domain's members are verified, as its state says.
func Trusts(d *admin.TrustedDomain) bool {
	if d == nil {
		return false
	}
	switch d.State {
	case "Waiting", "Expired", "Revoked":
		return false
	default:
		return len(d.Roots) > 0
	}
}

// RevokedRoots are the keys of a domain's roots that are revoked.
func RevokedRoots(d *admin.TrustedDomain) []string {
	var out []string
	for _, r := range d.Roots {
		if slices.Contains(d.RevokedKeys, r.KeyID) && !slices.Contains(out, r.KeyID) {
			out = append(out, r.KeyID)
		}
	}
	return out
}

// Lets reports whether a domain's members can pass: it is trusted, and the key of one of its roots at least is not revoked.
func Lets(d *admin.TrustedDomain) bool {
	return Trusts(d) && slices.ContainsFunc(d.Roots, func(r admin.Certificate) bool { return !slices.Contains(d.RevokedKeys, r.KeyID) })
}

// Stays reports whether a revocation is one that somebody must remember: of a whole domain, or a block. A key that is revoked for good harms nobody else.
func Stays(r *admin.Revocation) bool { return r.Ends.IsZero() && (r.Kind == "domain" || r.Block) }
