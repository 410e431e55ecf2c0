package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
)

// maxAsk bounds the body of a request.
const maxAsk = 4 << 10

// API returns the handler of the admin API (api/admin). Whoever reaches it is the operator: serve it where only they can.
func (c *Control) API() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.Status()) })
	mux.HandleFunc("GET /v1/services", c.list(func(p *present) any { return p.services() }))
	mux.HandleFunc("GET /v1/endpoints", c.list(func(p *present) any { return p.endpoints() }))
	mux.HandleFunc("GET /v1/peers", c.list(func(p *present) any { return p.peers() }))
	mux.HandleFunc("GET /v1/exports", c.list(func(p *present) any { return p.exports() }))
	mux.HandleFunc("GET /v1/imports", c.list(func(p *present) any { return p.imports() }))
	mux.HandleFunc("GET /v1/policies", c.list(func(p *present) any { return p.policies() }))
	mux.HandleFunc("GET /v1/problems", func(w http.ResponseWriter, _ *http.Request) { answer(w, notNil(c.manifests().Problems)) })
	mux.HandleFunc("GET "+admin.LinksPath, c.list(func(p *present) any { return p.linkDetails() }))
	mux.HandleFunc("GET /v1/introduction", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.Introduction()) })
	mux.HandleFunc("GET /v1/traffic", c.getTraffic)
	mux.HandleFunc("GET "+admin.TimelinePath, c.getTimeline)
	mux.HandleFunc("GET /v1/proxies", func(w http.ResponseWriter, _ *http.Request) { answer(w, c.proxies()) })
	mux.HandleFunc("DELETE /v1/proxies/{program}/{name}", c.removeProxy)
	mux.HandleFunc("POST /v1/tokens", c.postToken)
	c.serveTrust(mux)
	c.serveDrains(mux)
	c.serveDrills(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Errorf("%s %s is not known here", r.Method, r.URL.Path))
	})
	return mux
}

// list serves what is computed from what is in force.
func (c *Control) list(of func(*present) any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		p := c.present.Load()
		if p == nil {
			refuse(w, http.StatusServiceUnavailable, errors.New("not everything has been read yet: "+strings.Join(c.cfg.Checks.Missing(), "; ")))
			return
		}
		answer(w, of(p))
	}
}

// Introduction returns what another cluster's ClusterPeer must say to let this cluster in.
func (c *Control) Introduction() admin.Introduction {
	urls, pods := c.cfg.BusURLs, []string(nil)
	if p := c.present.Load(); p != nil {
		pods = texts(p.world.own.PodCIDRs)
	}
	if objects := c.cfg.Registry.Objects().Load(); len(urls) == 0 && objects != nil {
		urls = objects.Outside.Bus
	}
	return admin.Introduction{
		Cluster: c.cfg.Cluster.String(), TrustDomain: c.cfg.Domain.Name(),
		RootFingerprint: c.keys.Fingerprint().String(), BusKey: c.keys.BusKey(), BusURLs: notNil(urls), PodCIDRs: pods,
	}
}

func (c *Control) postToken(w http.ResponseWriter, r *http.Request) {
	var ask admin.TokenRequest
	if !decodeAsk(w, r, "token request", maxAsk, &ask) {
		return
	}
	program, name, err := asked(ask)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	if _, err = c.directory.identity(program, name); err != nil {
		code := http.StatusNotFound
		if errors.Is(err, errNotLoaded) {
			code = http.StatusServiceUnavailable
		}
		refuse(w, code, err)
		return
	}
	token, expires, err := c.tokens.issue(program, name)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	c.cfg.Log.InfoContext(r.Context(), "join token issued", "program", program, "name", name, "expires", expires)
	answer(w, admin.Token{Token: token, Expires: expires})
}

// asked returns whom a token is asked for.
func asked(r admin.TokenRequest) (program, name string, err error) {
	for p, n := range map[string]string{
		configstream.ProgramSidecar: r.Workload, configstream.ProgramGateway: r.Gateway, configstream.ProgramNode: r.Node,
	} {
		if n == "" {
			continue
		}
		if program != "" {
			return "", "", errors.New("token request: want one of workload, gateway and node, and not several")
		}
		program, name = p, n
	}
	if program == "" {
		return "", "", errors.New("token request: want one of workload, gateway and node")
	}
	return program, name, nil
}

func (c *Control) removeProxy(w http.ResponseWriter, r *http.Request) {
	program, name := r.PathValue("program"), r.PathValue("name")
	if program != configstream.ProgramGateway && program != configstream.ProgramNode {
		refuse(w, http.StatusBadRequest, fmt.Errorf("program %q: want gateway or node; a sidecar goes with its Workload", program))
		return
	}
	was, err := c.fleet.remove(program, name)
	switch {
	case err != nil:
		refuse(w, http.StatusInternalServerError, err)
	case !was:
		refuse(w, http.StatusNotFound, fmt.Errorf("there is no %s %q", program, name))
	default:
		c.cfg.Log.InfoContext(r.Context(), "removed from the roster", "program", program, "name", name)
		w.WriteHeader(http.StatusNoContent)
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client went away
}

func refuse(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()}) // the client went away
}

// notNil makes an empty list of none, so that JSON says [] and not null.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
