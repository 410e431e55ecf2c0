package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Settle waits until what runs has found each other, so that the first call goes where all later ones go: every control has
// read who its peers are, has fresh word of them and imports what they export to it, every gateway has its links, and every sidecar
// would use each cluster that it can. What is dead is left out, and what is dead makes nobody wait.
func (p *Playground) Settle(ctx context.Context) error {
	err := p.poll(ctx, func(ctx context.Context) error {
		said, err := p.hear(ctx)
		if err != nil {
			return err
		}
		for _, c := range p.state.Spec.Clusters {
			w, ok := said[c.Name]
			if !ok {
				continue
			}
			if err := p.linked(c, w.status); err != nil {
				return err
			}
			if err := p.imported(c, said); err != nil {
				return err
			}
			if err := p.usable(ctx, c, w); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("all programs are ready, but not settled: %w", err)
	}
	return nil
}

// word is what a control says of its cluster.
type word struct {
	status  admin.Status
	exports []admin.Export
	imports []admin.Import
}

// hear asks every control that lives.
func (p *Playground) hear(ctx context.Context) (map[string]word, error) {
	said := make(map[string]word)
	for _, c := range p.state.Spec.Clusters {
		if !p.alive(unit{cluster: c.Name, name: "control"}) {
			continue
		}
		client := admin.NewClient(p.SocketOf(c.Name))
		status, err1 := client.Status(ctx)
		exports, err2 := client.Exports(ctx)
		imports, err3 := client.Imports(ctx)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, err
		}
		said[c.Name] = word{status, exports, imports}
	}
	return said, nil
}

// whole reports whether all of a cluster runs.
func (p *Playground) whole(cluster string) bool {
	c, ok := p.state.Spec.Cluster(cluster)
	return ok && !slices.ContainsFunc(c.units(), func(u unit) bool { return !p.alive(u) })
}

func (p *Playground) linked(c Cluster, st admin.Status) error {
	for _, o := range p.state.Spec.Clusters {
		if !p.introduced(c, o) || !p.whole(o.Name) {
			continue
		}
		i := slices.IndexFunc(st.Peers, func(peer admin.Peer) bool { return peer.Cluster == o.Name })
		if i < 0 {
			return fmt.Errorf("%s has not read %s yet", c.Name, peerFile(o))
		}
		if peer := st.Peers[i]; peer.State != "Fresh" {
			return fmt.Errorf("%s: peer %s is %s %s", c.Name, peer.Cluster, peer.State, peer.Reason)
		}
		for _, u := range c.units() {
			if u.program == Gateway && p.alive(u) && !linkUp(st.Links, u.name, o.Name) {
				return fmt.Errorf("%s: no link to %s yet", u.id(), o.Name)
			}
		}
	}
	return nil
}

// introduced reports whether each of two clusters is a peer in the other's manifests. Their user may have taken that back.
func (p *Playground) introduced(a, b Cluster) bool {
	has := func(in, of Cluster) bool {
		_, err := os.Stat(filepath.Join(p.ManifestsOf(in.Name), peerFile(of)))
		return err == nil
	}
	return a.Name != b.Name && has(a, b) && has(b, a)
}

// imported looks for what the others export to c.
func (p *Playground) imported(c Cluster, said map[string]word) error {
	for _, o := range p.state.Spec.Clusters {
		if !p.introduced(c, o) || !p.whole(o.Name) {
			continue
		}
		for _, e := range said[o.Name].exports {
			valid := slices.ContainsFunc(e.Conditions, func(c admin.Condition) bool { return c.Type == "Valid" && c.Status == "True" })
			if !valid || len(e.Audience) > 0 && !slices.Contains(e.Audience, c.Name) {
				continue
			}
			if !slices.ContainsFunc(said[c.Name].imports, func(i admin.Import) bool {
				return i.Namespace == e.Namespace && i.Name == e.Name && slices.Contains(i.Clusters, o.Name)
			}) {
				return fmt.Errorf("%s has not heard yet that %s exports %s.%s", c.Name, o.Name, e.Name, e.Namespace)
			}
		}
	}
	return nil
}

func linkUp(links []admin.Link, gateway, cluster string) bool {
	return slices.ContainsFunc(links, func(l admin.Link) bool {
		return l.Gateway == gateway && l.Cluster == cluster && l.Carries()
	})
}

// usable asks each sidecar of a cluster about each import. A cluster that it holds for a last resort is not settled yet,
// unless its own requests found that cluster wanting: how long it remembers that is its own affair.
func (p *Playground) usable(ctx context.Context, c Cluster, w word) error {
	for _, u := range c.units() {
		if u.program != Sidecar || !p.alive(u) {
			continue
		}
		for _, i := range w.imports {
			to := i.Name + "." + i.Namespace
			x, err := explain(ctx, p.state.near(u), p.state.address(u, "admin"), to)
			if err != nil {
				return fmt.Errorf("%s: %w", u.id(), err)
			}
			for _, from := range i.Clusters {
				isPeer := slices.ContainsFunc(w.status.Peers, func(peer admin.Peer) bool { return peer.Cluster == from })
				if !isPeer || !p.whole(from) {
					continue
				}
				if !slices.ContainsFunc(x.Rows, func(r topology.ExplanationRow) bool {
					return r.Cluster.String() == from && (r.State != topology.LastResort || r.Cause == topology.Ejected)
				}) {
					return fmt.Errorf("%s does not use %s of %s yet", u.id(), to, from)
				}
			}
		}
	}
	return nil
}

// maxExplanation bounds what is read of a sidecar's answer.
const maxExplanation = 16 << 20

func explain(ctx context.Context, client *http.Client, address, to string) (topology.Explanation, error) {
	var x topology.Explanation
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/explain?to="+url.QueryEscape(to), http.NoBody)
	if err != nil {
		return x, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return x, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return x, fmt.Errorf("explain %s: %s", to, resp.Status)
	}
	return x, json.NewDecoder(io.LimitReader(resp.Body, maxExplanation)).Decode(&x)
}
