package control

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

// acceptedDomains leaves out the FederatedTrustDomains that are clusters of the mesh, of which the peer alone speaks, or that are declared
// twice. peers are all that are declared: one that is not in force is no way in either.
func acceptedDomains(self Self, peers []ClusterPeer, in []FederatedTrustDomain) (accepted []FederatedTrustDomain, problems []Problem) {
	owner := make(map[spiffeid.TrustDomain]string, len(in))
	for _, d := range in {
		reason := ""
		i := slices.IndexFunc(peers, func(p ClusterPeer) bool { return p.Domain == d.Domain })
		switch other, taken := owner[d.Domain]; {
		case d.Domain == self.Domain:
			reason = fmt.Sprintf("spec.trustDomain: %s is this cluster's own", d.Domain.Name())
		case i >= 0:
			reason = fmt.Sprintf("spec.trustDomain: %s is that of %s, whose word counts", d.Domain.Name(), peers[i].Object())
		case taken:
			reason = fmt.Sprintf("spec.trustDomain: %s is that of %s too, which is in force; this one is not", d.Domain.Name(), other)
		case len(accepted) == bundleendpoint.MaxDomains:
			reason = fmt.Sprintf("%d others are followed, which is the limit", bundleendpoint.MaxDomains)
		}
		if reason != "" {
			problems = append(problems, Problem{Source: d.Source, Object: d.Object(), Reason: reason})
			continue
		}
		owner[d.Domain] = d.Object()
		accepted = append(accepted, d)
	}
	return accepted, problems
}

// followedDomains are accepted ones, as the follower takes them.
func followedDomains(accepted []FederatedTrustDomain) []bundleendpoint.Domain {
	out := make([]bundleendpoint.Domain, 0, len(accepted))
	for _, d := range accepted {
		out = append(out, bundleendpoint.Domain{Name: d.Domain, Endpoint: d.Endpoint, Initial: d.Initial})
	}
	return out
}

// bundles returns what the programs here verify members of all trust domains with: of the own, of peers whose word counts, and of domains that
// are no clusters of the mesh.
func (w *world) bundles() map[spiffeid.TrustDomain]trust.Bundle {
	out := make(map[spiffeid.TrustDomain]trust.Bundle, 1+len(w.usable)+len(w.domains))
	out[w.in.self.Domain] = w.in.trust
	for _, v := range w.usable {
		out[v.Domain] = w.in.revoked.onto(v.Domain, v.Bundle)
	}
	for _, d := range w.domains {
		i := slices.IndexFunc(w.in.domains, func(s bundleendpoint.State) bool { return s.Domain == d.Domain })
		if i >= 0 && len(w.in.domains[i].Bundle.Authorities) > 0 && !w.in.revoked.domain(d.Domain) && !w.takesOurs(w.in.domains[i].Bundle) {
			out[d.Domain] = w.in.revoked.onto(d.Domain, w.in.domains[i].Bundle)
		}
	}
	return out
}

// domainConditions says of each FederatedTrustDomain how current its bundle is.
func (w *world) domainConditions() []DomainStatus {
	var out []DomainStatus
	for _, d := range w.in.objects.Domains {
		c := Condition{Type: conditionReady, Status: False}
		i := slices.IndexFunc(w.in.domains, func(s bundleendpoint.State) bool { return s.Domain == d.Domain })
		switch {
		case !slices.ContainsFunc(w.domains, func(o FederatedTrustDomain) bool { return o.Name == d.Name }):
			c.Reason, c.Message = reasonNotInForce, reasonOf(w.problems, d.Object())
		case i < 0: // it has just been declared
			c.Reason, c.Message = string(bundleendpoint.Failed), "the endpoint has not been asked yet"
		default:
			s := w.in.domains[i]
			c.Reason, c.Message = string(s.Freshness), s.Reason
			if w.takesOurs(s.Bundle) {
				c.Reason, c.Message = reasonNotInForce, "its bundle has a root that is this cluster's own too, and no CA here has the trust domain as its URI"
				break
			}
			if s.Freshness == bundleendpoint.Fresh {
				c.Status = True
			}
		}
		out = append(out, DomainStatus{Domain: d, Conditions: []Condition{c}})
	}
	return out
}

// reasonOf returns what is wrong with an object.
func reasonOf(problems []Problem, object string) string {
	for _, p := range problems {
		if p.Object == object {
			return p.Reason
		}
	}
	return ""
}

// FederatedDomains returns what is known of the trust domains that are followed, by name.
func (c *Control) FederatedDomains() []bundleendpoint.State { return c.follower.States() }

// bundleOf returns the bundle of a domain that is not followed: of the own, and of a peer whose word counts.
func (c *Control) bundleOf(td spiffeid.TrustDomain) (trust.Bundle, bool) {
	if td == c.cfg.Domain {
		return c.ownBundle(), true
	}
	if p := c.present.Load(); p != nil {
		for _, v := range p.world.usable {
			if v.Domain == td {
				return p.world.in.revoked.onto(td, v.Bundle), true
			}
		}
	}
	return trust.Bundle{}, false
}

const (
	// maxMarks is how many domains it is remembered of how far they had come, those that are followed no longer included.
	maxMarks     = 1024
	maxMarksFile = 1 << 20
)

// domainStore keeps what was heard of federated trust domains: how far each had come in one file, and the documents, which their endpoints
// would tell again, in a folder.
type domainStore struct {
	marks, documents string
}

func (s *domainStore) document(td spiffeid.TrustDomain) string {
	name := td.Name()    // has no separator
	if len(name) > 128 { // of the 255 that a file's name may have, and what is put before it while it is written
		sum := sha256.Sum256([]byte(name))
		name = name[:64] + "-" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(s.documents, name+".json")
}

func (s *domainStore) readMarks() (map[string]bundleendpoint.Mark, error) {
	b, err := atomicfile.Read(s.marks, maxMarksFile)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]bundleendpoint.Mark{}, nil
	}
	if err != nil {
		return nil, err
	}
	var out map[string]bundleendpoint.Mark
	if err = json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("%s: %w: move it away if older bundles may be taken once", s.marks, err)
	}
	return out, nil
}

// Load returns what is kept of a domain.
func (s *domainStore) Load(td spiffeid.TrustDomain) (bundleendpoint.Kept, error) {
	marks, err := s.readMarks()
	if err != nil {
		return bundleendpoint.Kept{}, err
	}
	k := bundleendpoint.Kept{Mark: marks[td.Name()]}
	if k.Document, err = atomicfile.Read(s.document(td), trust.MaxBundleSize); err != nil {
		k.Document = nil // it is asked for again; the mark is what counts
	}
	return k, nil
}

// Save keeps the document, and then the mark: a document that is ahead of its mark is good, and one that is behind is not.
func (s *domainStore) Save(td spiffeid.TrustDomain, k bundleendpoint.Kept) error {
	marks, err := s.readMarks()
	if err != nil {
		return err
	}
	if _, known := marks[td.Name()]; !known && len(marks) >= maxMarks {
		return fmt.Errorf("%s: it is remembered of %d trust domains how far they had come: remove those that will not come again", s.marks, len(marks))
	}
	marks[td.Name()] = k.Mark
	b, err := json.MarshalIndent(marks, "", "  ")
	if err != nil {
		return err
	}
	if err = os.MkdirAll(s.documents, 0o700); err != nil {
		return err
	}
	if err = atomicfile.Write(s.document(td), k.Document, 0o600); err != nil {
		return err
	}
	return atomicfile.Write(s.marks, append(b, '\n'), 0o600)
}
