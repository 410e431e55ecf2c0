package chaos

import (
	"context"
	"fmt"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/lab"
)

// fault is one way to break something.
type fault struct {
	kind   string
	what   string // in words, with who suffers
	kills  string // the cluster whose sidecars lose what they have not written; empty: none
	inject func(ctx context.Context) error
}

// choose draws different faults for a victim. What stays whole is enough to answer: the other cluster, the caller's way to it, and one gateway
// of the caller's.
func (r *run) choose(victim string, n int) []fault {
	all := r.processFaults(victim)
	if r.Lab.Runtime == lab.Netns {
		all = append(all, r.wanFaults(victim)...)
	}
	r.luck.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(n, len(all))]
}

func (r *run) processFaults(victim string) []fault {
	kill := func(kind, target, kills string) fault {
		return fault{kind, kind + " " + target, kills, func(ctx context.Context) error {
			_, err := r.pg.Break(ctx, target)
			return err
		}}
	}
	stop := func(target string) fault {
		return fault{"stop gateway", "stop gateway " + target, "", func(ctx context.Context) error {
			_, err := r.pg.Stop(ctx, grace, target)
			return err
		}}
	}
	other := "us"
	if victim == other {
		other = "ap"
	}
	which := fmt.Sprintf("gateway-%d", r.luck.IntN(2))
	return []fault{
		kill("kill application", victim+"/checkout-0-app", ""),
		kill("kill sidecar", victim+"/checkout-0-sidecar", victim),
		kill("kill gateway", victim+"/"+which, ""),
		kill("kill caller's gateway", home+"/"+which, ""),
		kill("kill control", victim+"/control", ""),
		kill("kill caller's control", home+"/control", ""),
		kill("kill other's control", other+"/control", ""),
		kill("kill node proxy", victim+"/node-0", ""),
		kill("kill cluster", victim, victim),
		stop(victim + "/" + which),
		stop(home + "/" + which),
	}
}

func (r *run) wanFaults(victim string) []fault {
	out := make([]fault, 0, 8)
	for _, f := range []struct{ kind, pair, link string }{
		{"black hole", "-", "down"},
		{"one-way partition", ">", "down"},
		{"one-way partition", "<", "down"},
		{"loss", "-", "10ms,15%"},
		{"delay", "-", "150ms"},
		{"disorder", "-", "20ms~15ms,reorder=10%,dup=5%"},
		{"slow link", "-", "10ms,2mbit"},
	} {
		pair := home + f.pair + victim
		if f.pair == "<" {
			pair = victim + ">" + home
		}
		out = append(out, fault{f.kind, fmt.Sprintf("%s %s (%s)", f.kind, pair, f.link), "", r.shape(pair + "=" + f.link)})
	}
	isolate := fault{"isolation", "isolation of " + victim, "", r.shape(victim+"-eu=down", victim+"-us=down", victim+"-ap=down")}
	return append(out, isolate)
}

// shape makes links what the words say; pairs of a cluster with itself are none.
func (r *run) shape(words ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		var names []string
		for _, c := range r.pg.Spec().Clusters {
			names = append(names, c.Name)
		}
		var all []lab.Direction
		for _, w := range words {
			if selfPair(w, names) {
				continue
			}
			d, err := lab.ParseDirections(w, names)
			if err != nil {
				return err
			}
			all = append(all, d...)
		}
		_, err := r.pg.SetDirections(ctx, all)
		return err
	}
}

func selfPair(words string, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return len(words) > 2*len(n)+1 && words[:2*len(n)+1] == n+"-"+n })
}

// allPairs returns every link of a mesh, all alike.
func allPairs(spec lab.Spec, link string) ([]lab.Direction, error) {
	var names []string
	for _, c := range spec.Clusters {
		names = append(names, c.Name)
	}
	var out []lab.Direction
	for i, a := range names {
		for _, b := range names[i+1:] {
			d, err := lab.ParseDirections(a+"-"+b+"="+link, names)
			if err != nil {
				return nil, err
			}
			out = append(out, d...)
		}
	}
	return out, nil
}

// idOf is who a workload of the sample is.
func idOf(spec lab.Spec, cluster, app string) (string, error) {
	c, ok := spec.Cluster(cluster)
	if !ok {
		return "", lab.ErrNoTarget
	}
	return "spiffe://" + c.TrustDomain + "/ns/shop/sa/" + app, nil
}
