package main

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
	"github.com/isthmus-mesh/isthmus/trust/upstream"
)

// config is the file; help documents it.
type config struct {
	Cluster     string `json:"cluster"`
	TrustDomain string `json:"trustDomain"`
	Region      string `json:"region"`
	Zone        string `json:"zone"`
	Manifests   string `json:"manifests"`
	// Kubernetes is set, be it empty, where the cluster is a Kubernetes cluster.
	Kubernetes *struct {
		Kubeconfig string `json:"kubeconfig"`
		Context    string `json:"context"`
		// StateSecret and TrustBundle are names in control's own namespace; empty: none.
		StateSecret string `json:"stateSecret"`
		TrustBundle string `json:"trustBundle"`
		// Injection is set where control puts sidecars into Pods.
		Injection *injection `json:"injection"`
	} `json:"kubernetes"`
	// Authority is whose CA issues the trust domain's SVIDs; unset: control's own.
	Authority struct {
		Files *struct {
			Certificate string `json:"certificate"`
			Key         string `json:"key"`
			Bundle      string `json:"bundle"`
		} `json:"files"`
		WorkloadAPI string `json:"workloadAPI"`
	} `json:"authority"`
	State  string             `json:"state"`
	Listen strictyaml.Address `json:"listen"`
	Bus    struct {
		Listen    strictyaml.Address `json:"listen"`
		Advertise []string           `json:"advertise"`
	} `json:"bus"`
	Admin struct {
		Socket string             `json:"socket"`
		Listen strictyaml.Address `json:"listen"`
	} `json:"admin"`
	WorkloadAPI struct {
		Socket string `json:"socket"`
	} `json:"workloadAPI"`
	FederationEndpoint *federationEndpoint `json:"federationEndpoint"`
	ClusterSetCIDR     string              `json:"clusterSetCIDR"`
	PodCIDRs           []string            `json:"podCIDRs"`
	PeerPodCIDRs       []string            `json:"peerPodCIDRs"`
	NodeProxies        []string            `json:"nodeProxies"`
	Log                struct {
		Level  string `json:"level"`
		Format string `json:"format"`
	} `json:"log"`

	cluster topology.ClusterName
	domain  spiffeid.TrustDomain
	cidr    netip.Prefix
	pods    []netip.Prefix
	peers   []netip.Prefix // nil: the default
}

// injection is the admission webhook that puts sidecars into Pods.
type injection struct {
	Listen   strictyaml.Address `json:"listen"`
	Names    []string           `json:"names"`
	Settings string             `json:"settings"`
	Webhook  string             `json:"webhook"`
}

// federationEndpoint is where the own trust bundle is served to other implementations of SPIFFE.
type federationEndpoint struct {
	Listen      strictyaml.Address `json:"listen"`
	Profile     string             `json:"profile"`
	Certificate string             `json:"certificate"`
	Key         string             `json:"key"`
}

// maxPlace bounds region and zone: they are label values in manifests and records.
const maxPlace = 63

// checkAuthority: one of the two, or neither.
func (c *config) checkAuthority(wrong func(field, format string, args ...any)) {
	a := c.Authority
	if f := a.Files; f != nil {
		for _, p := range []struct{ field, value string }{
			{"authority.files.certificate", f.Certificate}, {"authority.files.key", f.Key}, {"authority.files.bundle", f.Bundle},
		} {
			if p.value == "" {
				wrong(p.field, "is missing")
			}
		}
	}
	if a.WorkloadAPI == "" {
		return
	}
	if err := upstream.CheckAddress(a.WorkloadAPI); err != nil {
		wrong("authority.workloadAPI", "%v", err)
	}
	if a.Files != nil {
		wrong("authority.workloadAPI", "stands beside authority.files: SVIDs are issued by one of them")
	}
	if k := c.Kubernetes; k != nil && k.Injection != nil {
		wrong("authority.workloadAPI", "stands beside kubernetes.injection: a Workload API certifies no DNS name, which the API server looks for")
	}
}

func readConfig(file string) (*config, error) {
	c := new(config)
	d, err := strictyaml.ReadConfig(file, c)
	if err != nil {
		return nil, err
	}
	if err := c.check(d); err != nil {
		return nil, err
	}
	return c, nil
}

// check refuses what can't work, with its line, and fills in defaults.
func (c *config) check(d *strictyaml.Document) error {
	var errs []error
	wrong := func(field, format string, args ...any) { errs = append(errs, d.Errorf(field, format, args...)) }
	for _, f := range []struct{ field, value string }{
		{"cluster", c.Cluster},
		{"trustDomain", c.TrustDomain},
		{"state", c.State},
		{"listen", string(c.Listen)},
		{"bus.listen", string(c.Bus.Listen)},
	} {
		if f.value == "" {
			wrong(f.field, "is missing")
		}
	}
	for _, f := range []struct {
		field   string
		address strictyaml.Address
	}{
		{"listen", c.Listen}, {"bus.listen", c.Bus.Listen}, {"admin.listen", c.Admin.Listen},
	} {
		if err := f.address.Check(); err != nil {
			wrong(f.field, "%v", err)
		}
	}
	if _, err := telemetry.ParseLevel(c.Log.Level); err != nil {
		wrong("log.level", "%v", err)
	}
	if err := telemetry.CheckFormat(c.Log.Format); err != nil {
		wrong("log.format", "%v", err)
	}
	for _, f := range []struct{ field, value string }{{"region", c.Region}, {"zone", c.Zone}} {
		if len(f.value) > maxPlace {
			wrong(f.field, "want at most %d bytes", maxPlace)
		}
	}
	c.checkAuthority(wrong)
	var err error
	if c.cluster, err = topology.ParseClusterName(c.Cluster); err != nil && c.Cluster != "" {
		wrong("cluster", "%v", err)
	}
	if c.domain, err = spiffeid.TrustDomainFromString(c.TrustDomain); err != nil && c.TrustDomain != "" {
		wrong("trustDomain", "%v", err)
	} else if c.TrustDomain != "" && c.domain.Name() != c.TrustDomain {
		wrong("trustDomain", "want the name alone, %q", c.domain.Name())
	}
	if c.ClusterSetCIDR != "" {
		if c.cidr, err = netip.ParsePrefix(c.ClusterSetCIDR); err != nil {
			wrong("clusterSetCIDR", "%q: want a prefix such as 241.0.0.0/8", c.ClusterSetCIDR)
		}
	}
	prefixes := func(field string, in []string) []netip.Prefix {
		var out []netip.Prefix
		if in != nil {
			out = []netip.Prefix{}
		}
		for i, s := range in {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				wrong(field, "entry %d, %q: want a prefix such as 10.1.0.0/16", i+1, s)
			}
			out = append(out, p.Masked())
		}
		return out
	}
	c.pods, c.peers = prefixes("podCIDRs", c.PodCIDRs), prefixes("peerPodCIDRs", c.PeerPodCIDRs)
	for i, u := range c.Bus.Advertise {
		if !isBusURL(u) {
			wrong("bus.advertise", "entry %d, %q: want tls://host:port", i+1, u)
		}
	}
	for i, n := range c.NodeProxies {
		if slices.Contains(c.NodeProxies[:i], n) {
			wrong("nodeProxies", "%q stands twice", n)
		}
	}
	switch k := c.Kubernetes; {
	case k == nil && c.Manifests == "":
		wrong("manifests", "is missing; for a Kubernetes cluster: kubernetes: {}")
	case k != nil && c.Manifests != "":
		wrong("kubernetes", "stands beside manifests: a cluster is read from one of them")
	case k != nil && k.Context != "" && k.Kubeconfig == "":
		wrong("kubernetes.context", "is one of a kubeconfig's, and kubernetes.kubeconfig is missing")
	case k != nil && k.TrustBundle != "" && k.StateSecret == "":
		wrong("kubernetes.trustBundle", "is kept together with the state, and kubernetes.stateSecret is missing")
	}
	if k := c.Kubernetes; k != nil && k.Injection != nil {
		k.Injection.check(wrong)
	}
	if c.Kubernetes != nil && c.WorkloadAPI.Socket != "" {
		wrong("workloadAPI.socket", "is for processes of this machine: in Kubernetes the sidecars serve the Workload API (listen.workloadAPI)")
	}
	if c.FederationEndpoint != nil {
		c.FederationEndpoint.check(wrong)
	}
	if inside(c.Manifests, c.State) {
		wrong("state", "is inside the folder of manifests; keep them apart")
	}
	if len(errs) == 0 {
		c.defaults()
	}
	return errors.Join(errs...)
}

func (i *injection) check(wrong func(field, format string, args ...any)) {
	const at = "kubernetes.injection."
	if err := i.Listen.Check(); err != nil {
		wrong(at+"listen", "%v", err)
	}
	for _, f := range []struct{ field, value string }{{"listen", string(i.Listen)}, {"names", strings.Join(i.Names, "")}, {"settings", i.Settings}} {
		if f.value == "" {
			wrong(at+f.field, "is missing")
		}
	}
}

func (e *federationEndpoint) check(wrong func(field, format string, args ...any)) {
	const at = "federationEndpoint."
	if e.Listen == "" {
		wrong(at+"listen", "is missing")
	}
	if err := e.Listen.Check(); err != nil {
		wrong(at+"listen", "%v", err)
	}
	files := e.Certificate != "" || e.Key != ""
	switch bundleendpoint.Profile(e.Profile) {
	case bundleendpoint.HTTPSSPIFFE:
		if files {
			wrong(at+"certificate", "certificate and key are for the profile %s; with %s control shows its SVID", bundleendpoint.HTTPSWeb, e.Profile)
		}
	case bundleendpoint.HTTPSWeb:
		if e.Certificate == "" || e.Key == "" {
			wrong(at+"certificate", "certificate and key are needed with the profile %s: a chain for the DNS name, and its key, as files (PEM)", e.Profile)
		}
	default:
		wrong(at+"profile", "%q: want %s or %s", e.Profile, bundleendpoint.HTTPSSPIFFE, bundleendpoint.HTTPSWeb)
	}
}

func (c *config) defaults() {
	if c.Admin.Socket == "" {
		c.Admin.Socket = filepath.Join(c.State, "control.sock")
	}
	if len(c.Bus.Advertise) > 0 {
		return
	}
	host, port, err := net.SplitHostPort(string(c.Bus.Listen))
	if ip := net.ParseIP(host); err == nil && host != "" && port != "0" && (ip == nil || !ip.IsUnspecified()) {
		c.Bus.Advertise = []string{"tls://" + string(c.Bus.Listen)}
	}
}

func isBusURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	host, port, err := net.SplitHostPort(u.Host)
	return err == nil && u.Scheme == "tls" && host != "" && port != "" && u.Path == "" && u.User == nil && u.RawQuery == "" && u.Fragment == ""
}

// inside reports whether path is folder or lies below it.
func inside(folder, path string) bool {
	if folder == "" || path == "" {
		return false
	}
	a, err1 := filepath.Abs(folder)
	b, err2 := filepath.Abs(path)
	rel, err3 := filepath.Rel(a, b)
	return errors.Join(err1, err2, err3) == nil && filepath.IsLocal(rel)
}
