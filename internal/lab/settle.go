package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Settle waits until what runs has found each other, so that the first call goes where all later ones go: every control has
// fresh word of its peers, every gateway has its links, and every sidecar would use each cluster that it can. What is
// dead is left out, and what is dead makes nobody wait.
func (p *Playground) Settle(ctx context.Context) error {
	err := p.poll(ctx, func(ctx context.Context) error {
		for _, c := range p.state.Spec.Clusters {
			if !p.alive(unit{cluster: c.Name, name: "control"}) {
				continue
			}
			client := admin.NewClient(p.SocketOf(c.Name))
			st, err := client.Status(ctx)
			if err != nil {
				return err
			}
			imports, err := client.Imports(ctx)
			if err != nil {
				return err
			}
			if err := p.linked(c, st); err != nil {
				return err
			}
			if err := p.usable(ctx, c, st, imports); err != nil {
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

// whole reports whether all of a cluster runs.
func (p *Playground) whole(cluster string) bool {
	c, ok := p.state.Spec.Cluster(cluster)
	return ok && !slices.ContainsFunc(c.units(), func(u unit) bool { return !p.alive(u) })
}

func (p *Playground) linked(c Cluster, st admin.Status) error {
	for _, peer := range st.Peers {
		if !p.whole(peer.Cluster) {
			continue
		}
		if peer.State != "Fresh" {
			return fmt.Errorf("%s: peer %s is %s %s", c.Name, peer.Cluster, peer.State, peer.Reason)
		}
		for _, u := range c.units() {
			if u.program == Gateway && p.alive(u) && !linkUp(st.Links, u.name, peer.Cluster) {
				return fmt.Errorf("%s: no link to %s yet", u.id(), peer.Cluster)
			}
		}
	}
	return nil
}

func linkUp(links []admin.Link, gateway, cluster string) bool {
	return slices.ContainsFunc(links, func(l admin.Link) bool {
		return l.Gateway == gateway && l.Cluster == cluster && l.State == "up"
	})
}

// usable asks each sidecar of a cluster about each import. A cluster that it holds for a last resort is not settled yet,
// unless its own requests found that cluster wanting: how long it remembers that is its own affair.
func (p *Playground) usable(ctx context.Context, c Cluster, st admin.Status, imports []admin.Import) error {
	for _, u := range c.units() {
		if u.program != Sidecar || !p.alive(u) {
			continue
		}
		for _, i := range imports {
			to := i.Name + "." + i.Namespace
			x, err := explain(ctx, p.state.address(u, "admin"), to)
			if err != nil {
				return fmt.Errorf("%s: %w", u.id(), err)
			}
			for _, from := range i.Clusters {
				isPeer := slices.ContainsFunc(st.Peers, func(peer admin.Peer) bool { return peer.Cluster == from })
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

func explain(ctx context.Context, address, to string) (topology.Explanation, error) {
	var x topology.Explanation
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/explain?to="+url.QueryEscape(to), http.NoBody)
	if err != nil {
		return x, err
	}
	resp, err := plainHTTP.Do(req)
	if err != nil {
		return x, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return x, fmt.Errorf("explain %s: %s", to, resp.Status)
	}
	return x, json.NewDecoder(io.LimitReader(resp.Body, maxExplanation)).Decode(&x)
}
