package control

import (
	"fmt"
	"maps"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// expiries tells when what the cluster's trust stands on ends: control's own SVID, the issuing CA, the root that signs, the key for JWT-SVIDs, the
// federation's member root, and the last root of each trust domain.
func (c *Control) expiries() []telemetry.Expiry {
	own := c.cfg.Domain.Name()
	var out []telemetry.Expiry
	add := func(what, domain string, at time.Time) {
		out = append(out, telemetry.Expiry{What: what, TrustDomain: domain, At: at})
	}
	if svid, err := c.identity.SVID(); err == nil {
		add("svid", own, svid.Certificates[0].NotAfter)
	}
	t := c.Trust()
	if t.Authority.Issuing != nil {
		add("issuing", own, t.Authority.Issuing.NotAfter)
	}
	if t.Authority.JWTKey != nil {
		add("jwt_key", own, t.Authority.JWTKey.NotAfter)
	}
	if t.MemberRoot != nil {
		add("member_root", own, t.MemberRoot.NotAfter)
	}
	for i := range t.Domains {
		d := &t.Domains[i]
		add("bundle", d.TrustDomain, d.NotAfter)
		for _, r := range d.Roots {
			if r.State == "active" {
				add("root", d.TrustDomain, r.NotAfter)
			}
		}
	}
	return out
}

// jwtKey is the key that signs JWT-SVIDs; nil: another signs them.
func (c *Control) jwtKey() *admin.Certificate {
	a, ok := c.authority.(interface {
		JWTKeyDue() (id string, since, due time.Time)
	})
	if !ok {
		return nil
	}
	id, since, due := a.JWTKeyDue()
	if id == "" {
		return nil
	}
	return &admin.Certificate{Subject: "JWT key", KeyID: id, NotBefore: since, NotAfter: due}
}

// memberRoot is what the federation's signing keys stand on; nil before the first was made.
func (c *Control) memberRoot() *admin.Certificate {
	epoch, begins, ends := c.keys.MemberRoot()
	if ends.IsZero() {
		return nil
	}
	return &admin.Certificate{
		Subject: fmt.Sprintf("member root of epoch %d", epoch), KeyID: c.keys.Fingerprint().String(), NotBefore: begins, NotAfter: ends,
	}
}

// issuedUntil returns when the SVID ends that each program got last, by receiver; of sidecars, since control started.
func (f *fleet) issuedUntil() map[string]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]time.Time, len(f.issued)+len(f.roster.Gateways)+len(f.roster.Nodes))
	maps.Copy(out, f.issued)
	for id, g := range f.roster.Gateways {
		out[configstream.ProgramGateway+"/"+id] = g.SVIDEnds
	}
	for name, n := range f.roster.Nodes {
		out[configstream.ProgramNode+"/"+name] = n.SVIDEnds
	}
	return out
}

// noteIssued takes down when the SVID ends that a sidecar got. The roster has those of other programs.
func (f *fleet) noteIssued(program, name string, ends time.Time) {
	if program != configstream.ProgramSidecar {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.issued[program+"/"+name] = ends
}
