package check

import (
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// several is a check of all clusters that answered, two or more.
type several struct {
	Check

	judge func([]*Cluster) verdict
}

// between are the checks of clusters together.
var between = []several{
	{
		Check{
			"IST7201", "Names and trust domains", "each cluster has a name, a trust domain and keys of its own",
			"Two clusters with one name or one trust domain can't be told apart. Install one of them again, under another name.",
		}, func(all []*Cluster) verdict {
			var found []string
			for _, pin := range []struct {
				what string
				of   func(*Control) string
			}{
				{"the name", func(c *Control) string { return c.Status.Cluster }},
				{"the trust domain", func(c *Control) string { return c.Status.TrustDomain }},
				{"the root key", func(c *Control) string { return c.Introduction.RootFingerprint }},
				{"the bus key", func(c *Control) string { return c.Introduction.BusKey }},
			} {
				owner := map[string]string{}
				for _, c := range all {
					value := pin.of(c.Control.Value)
					if other, taken := owner[value]; taken {
						found = append(found, sprintf("%s and %s both have %s %s", other, c.Name, pin.what, value))
					}
					owner[value] = c.Name
				}
			}
			return faults(found)
		},
	},
	{
		Check{
			"IST7202", "clusterSetCIDR", "it is the same in all clusters",
			"Each cluster gives its own addresses to imports, so this harms nothing by itself; but one that overlaps elsewhere is noticed late. Install with the same value.",
		}, func(all []*Cluster) verdict {
			var found []string
			for _, c := range all {
				if text := c.Control.Value.Status.ClusterSetCIDR; text != all[0].Control.Value.Status.ClusterSetCIDR {
					found = append(found, sprintf("%s in %s, %s in %s", text, c.Cluster(), all[0].Control.Value.Status.ClusterSetCIDR, all[0].Cluster()))
				}
			}
			if len(found) > 0 {
				return warning(found...)
			}
			return ok(all[0].Control.Value.Status.ClusterSetCIDR)
		},
	},
	{
		Check{
			"IST7203", "Who reaches whom", "every cluster lets every other one in, hears its fresh word, and has links to it",
			"isthmus peer invite --context A | isthmus peer accept --context B | isthmus peer accept --context A; then IST7111 and IST7112.",
		}, func(all []*Cluster) verdict {
			var found []string
			for _, row := range Reach(all) {
				for _, r := range row {
					if r.From != r.To && !r.OK {
						found = append(found, sprintf("%s to %s: %s", r.From, r.To, r.How))
					}
				}
			}
			return faults(found)
		},
	},
	{
		Check{
			"IST7204", "Clocks", "they agree within 5 s",
			"Set the clocks by NTP. A peer's word is old after a minute, by the clock of whoever signed it; one from 5 minutes ahead is refused.",
		}, func(all []*Cluster) verdict {
			var found []string
			var most time.Duration
			for _, c := range all {
				if c.Control.Value.Status.Now.IsZero() {
					return unknown(errOld)
				}
				skew := c.Control.Value.Ahead - all[0].Control.Value.Ahead
				if most = max(most, skew.Abs()); skew.Abs() > skewTold {
					found = append(found, sprintf("%s is %s of %s", c.Cluster(), ahead(skew), all[0].Cluster()))
				}
			}
			switch {
			case most > skewMost:
				return failed(found...)
			case most > skewTold:
				return warning(found...)
			default:
				return ok()
			}
		},
	},
	{
		Check{
			"IST7205", "Versions of clusters", "all clusters run one version",
			"Fine during an update. Bring the others to it when it is done.",
		}, func(all []*Cluster) verdict {
			var found []string
			for _, c := range all[1:] {
				if c.Control.Value.Status.Version != all[0].Control.Value.Status.Version {
					found = append(found, sprintf("%s has %s, %s has %s", c.Cluster(), c.Control.Value.Status.Version, all[0].Cluster(), all[0].Control.Value.Status.Version))
				}
			}
			if len(found) > 0 {
				return warning(found...)
			}
			return ok(all[0].Control.Value.Status.Version)
		},
	},
	trustBetween,
}

// Reached is how one cluster reaches another, as it says itself.
type Reached struct {
	From  string        `json:"from"`
	To    string        `json:"to"`
	OK    bool          `json:"ok"`
	How   string        `json:"how"`
	Links int           `json:"links"` // that are up
	RTT   time.Duration `json:"rtt_ns,omitempty"`
}

// Reach returns a row for each cluster, with each cluster in it, in their order. Of itself it says "-".
func Reach(all []*Cluster) [][]Reached {
	var out [][]Reached
	for _, from := range all {
		var row []Reached
		for _, to := range all {
			row = append(row, reach(from, to))
		}
		out = append(out, row)
	}
	return out
}

func reach(from, to *Cluster) Reached {
	r := Reached{From: from.Cluster(), To: to.Cluster()}
	status, self := &from.Control.Value.Status, to.Control.Value.Introduction
	i := slices.IndexFunc(status.Peers, func(p admin.Peer) bool { return p.Cluster == self.Cluster })
	for _, l := range status.Links {
		if l.Cluster == self.Cluster && l.Carries() {
			if r.Links++; r.RTT == 0 || l.RTT > 0 && l.RTT < r.RTT {
				r.RTT = l.RTT
			}
		}
	}
	switch {
	case from == to:
		r.OK, r.How = true, "-"
	case i < 0:
		r.How = "not let in"
	case status.Peers[i].RootFingerprint != "" && status.Peers[i].RootFingerprint != self.RootFingerprint:
		r.How = "another cluster of its name is let in (fingerprint)"
	case status.Peers[i].State == "Revoked":
		r.How = strings.TrimSpace("Revoked there: "+status.Peers[i].Reason) + " (isthmus trust revoke " + r.To + " --undo)"
	case status.Peers[i].State != "Fresh":
		r.How = strings.TrimSpace(status.Peers[i].State + " " + status.Peers[i].Reason)
	case r.Links == 0:
		r.How = "no link"
		if slices.ContainsFunc(to.Control.Value.Status.Peers, func(p admin.Peer) bool { return p.Cluster == r.From && p.State == "Revoked" }) {
			r.How = "no link: it is revoked in " + r.To
		}
	default:
		r.OK, r.How = true, "ok"
		if r.RTT > 0 {
			r.How += " " + r.RTT.Round(10*time.Microsecond).String()
		}
	}
	return r
}
