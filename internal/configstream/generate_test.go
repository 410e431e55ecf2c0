package configstream

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// Generators of the topology's values, in every form that may travel.

var (
	genLabel   = rapid.StringMatching(`[a-z]([a-z0-9-]{0,8}[a-z0-9])?`)
	genText    = rapid.StringMatching(`[a-zA-Zåß 0-9./_-]{0,12}`)
	genLabels  = rapid.MapOfN(rapid.StringMatching(`[a-z./]{1,9}`), genText, 0, 3)
	genAddr    = rapid.Custom(func(t *rapid.T) netip.Addr { return genIP(t) })
	genPort    = rapid.Uint16Min(1)
	genPorts   = rapid.SliceOfN(genPort, 0, 4)
	genProto   = rapid.SampledFrom([]topology.Protocol{topology.TCP, topology.HTTP, topology.HTTP2, topology.GRPC})
	genCount   = rapid.IntRange(0, maxCount)
	genAddress = rapid.SampledFrom([]string{"", "127.0.0.1:1", "[::1]:65535", "gateway.example:443"})
)

func genIP(t *rapid.T) netip.Addr {
	if rapid.Bool().Draw(t, "v6") {
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ip")))
	}
	return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip")))
}

func genAddrPort(t *rapid.T) netip.AddrPort {
	return netip.AddrPortFrom(genIP(t), genPort.Draw(t, "port"))
}

func genCluster(t *rapid.T) topology.ClusterName {
	c, err := topology.ParseClusterName(genLabel.Draw(t, "cluster"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func genName(t *rapid.T) topology.ServiceName {
	n, err := topology.NewServiceName(genLabel.Draw(t, "namespace"), genLabel.Draw(t, "name"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func genDomain(t *rapid.T) spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString(genLabel.Draw(t, "domain") + ".example")
}

func genID(t *rapid.T) spiffeid.ID {
	return spiffeid.RequireFromSegments(genDomain(t), "ns", genLabel.Draw(t, "ns"), "sa", genLabel.Draw(t, "sa"))
}

func genLocality(t *rapid.T) topology.Locality {
	return topology.Locality{Region: genText.Draw(t, "region"), Zone: genText.Draw(t, "zone")}
}

func genEndpoint(t *rapid.T) topology.Endpoint {
	return topology.Endpoint{
		ID:       rapid.StringMatching(`[a-z0-9-]{1,12}`).Draw(t, "id"),
		Address:  genAddrPort(t),
		Server:   genID(t),
		Locality: genLocality(t),
		Labels:   genLabels.Draw(t, "labels"),
		Ports:    genPorts.Draw(t, "ports"),
		UDPPorts: genPorts.Draw(t, "udp_ports"),
		Ready:    rapid.Bool().Draw(t, "ready"),
		Capacity: genCount.Draw(t, "capacity"),
		Total:    genCount.Draw(t, "total"),
		StandIn:  rapid.Bool().Draw(t, "stand_in"),
	}
}

func genEndpoints(t *rapid.T) []topology.Endpoint {
	return rapid.SliceOfNDistinct(rapid.Custom(genEndpoint), 0, 4, func(e topology.Endpoint) string { return e.ID }).Draw(t, "endpoints")
}

func genRemote(t *rapid.T) topology.Remote {
	return topology.Remote{
		Cluster:  genCluster(t),
		Servers:  rapid.SliceOfN(rapid.Custom(genID), 0, 3).Draw(t, "servers"),
		Ports:    genPorts.Draw(t, "ports"),
		UDPPorts: genPorts.Draw(t, "udp_ports"),
		Ready:    genCount.Draw(t, "ready"),
		Total:    genCount.Draw(t, "total"),
		Labels:   genLabels.Draw(t, "labels"),
		Stale:    rapid.Bool().Draw(t, "stale"),
		Drain:    genDrain(t),
	}
}

func genDrain(t *rapid.T) *topology.Drain {
	if !rapid.Bool().Draw(t, "drained") {
		return nil
	}
	return &topology.Drain{
		Began: time.UnixMilli(rapid.Int64Range(1, maxMoment).Draw(t, "began")),
		Over:  time.Duration(rapid.Int64Range(0, maxDrainOver.Milliseconds()).Draw(t, "over")) * time.Millisecond,
	}
}

func genDrill(t *rapid.T) *topology.Drill {
	if !rapid.Bool().Draw(t, "drilled") {
		return nil
	}
	return &topology.Drill{
		ID:   rapid.StringMatching(`[a-z0-9]{1,20}`).Draw(t, "drill"),
		Ends: time.UnixMilli(rapid.Int64Range(1, maxMoment).Draw(t, "ends")), Silent: rapid.Bool().Draw(t, "silent"),
		Left: time.Duration(rapid.Int64Range(0, MaxDrillLeft.Milliseconds()).Draw(t, "left")) * time.Millisecond,
	}
}

func genHosts(t *rapid.T) topology.HostGroup {
	g := topology.HostGroup{Cluster: genCluster(t)}
	for range rapid.IntRange(0, 2).Draw(t, "host_ports") {
		g.Ports = append(g.Ports, topology.HostPort{
			Name: genText.Draw(t, "port_name"), Number: genPort.Draw(t, "port"), Target: genPort.Draw(t, "target"), Protocol: genText.Draw(t, "protocol"),
		})
	}
	for range rapid.IntRange(0, 2).Draw(t, "hosts") {
		h := topology.Host{Name: genLabel.Draw(t, "host"), Address: genIP(t)}
		h.IPs = rapid.SliceOfN(genAddr, 1, 2).Draw(t, "ips")
		if rapid.Bool().Draw(t, "as_is") {
			h.IPs = []netip.Addr{h.Address}
		}
		g.Hosts = append(g.Hosts, h)
	}
	return g
}

func genSelector(t *rapid.T) topology.Selector {
	return topology.Selector{
		Cluster: genText.Draw(t, "cluster"), Region: genText.Draw(t, "region"), Zone: genText.Draw(t, "zone"), Labels: genLabels.Draw(t, "labels"),
	}
}

func genPolicy(t *rapid.T) *topology.Policy {
	if rapid.Bool().Draw(t, "default_policy") {
		return nil
	}
	p := &topology.Policy{Name: genText.Draw(t, "policy"), Never: rapid.SliceOfN(rapid.Custom(genSelector), 0, 2).Draw(t, "never")}
	p.Spill.BelowHealthyPercent = rapid.IntRange(0, 100).Draw(t, "spill")
	p.Failback.After = time.Duration(rapid.Int64Range(0, maxFailback.Milliseconds()).Draw(t, "after")) * time.Millisecond
	p.Failback.Ramp = time.Duration(rapid.Int64Range(0, maxFailback.Milliseconds()).Draw(t, "ramp")) * time.Millisecond
	for range rapid.IntRange(0, 3).Draw(t, "tiers") {
		p.Tiers = append(p.Tiers, topology.Tier{
			Name: genText.Draw(t, "tier"), Match: genSelector(t), Weights: rapid.MapOfN(genLabel, rapid.Uint32(), 0, 3).Draw(t, "weights"),
		})
	}
	return p
}

func genService(t *rapid.T) *topology.Service {
	s := &topology.Service{
		Name:          genName(t),
		ClusterIPs:    rapid.SliceOfN(genAddr, 0, 2).Draw(t, "cluster_ips"),
		ClusterSetIPs: rapid.SliceOfN(genAddr, 0, 2).Draw(t, "clusterset_ips"),
		Imported:      rapid.Bool().Draw(t, "imported"),
		Exported:      rapid.Bool().Draw(t, "exported"),
		Headless:      rapid.Bool().Draw(t, "headless"),
		Endpoints:     genEndpoints(t),
		Remotes: rapid.SliceOfNDistinct(rapid.Custom(genRemote), 0, 3,
			func(r topology.Remote) topology.ClusterName { return r.Cluster }).Draw(t, "remotes"),
		Policy: genPolicy(t),
		Drain:  genDrain(t),
	}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		s.Ports = append(s.Ports, topology.Port{Name: genText.Draw(t, "port_name"), Number: genPort.Draw(t, "port"), Protocol: genProto.Draw(t, "protocol")})
	}
	for range rapid.IntRange(0, 2).Draw(t, "udp_ports") { // behind the others, as control lists them
		s.Ports = append(s.Ports, topology.Port{Name: genText.Draw(t, "port_name"), Number: genPort.Draw(t, "port"), Protocol: topology.UDP})
	}
	s.Hosts = rapid.SliceOfN(rapid.Custom(genHosts), 0, 2).Draw(t, "hosts")
	for range rapid.IntRange(0, 2).Draw(t, "other_ports") {
		s.OtherPorts = append(s.OtherPorts, topology.OtherPort{Name: genText.Draw(t, "port_name"), Number: genPort.Draw(t, "port"), Protocol: genText.Draw(t, "protocol")})
	}
	return s
}

func genGateway(t *rapid.T) topology.Gateway {
	return topology.Gateway{
		ID:       rapid.StringMatching(`[A-Za-z0-9_-]{1,12}`).Draw(t, "id"),
		Address:  genAddress.Draw(t, "address"),
		QUIC:     genAddress.Draw(t, "quic"),
		Identity: genID(t),
		Zone:     genText.Draw(t, "zone"),
		Draining: rapid.Bool().Draw(t, "draining"),
	}
}

func genPeer(t *rapid.T) *topology.Cluster {
	return &topology.Cluster{
		Name:     genCluster(t),
		Domain:   genDomain(t),
		Region:   genText.Draw(t, "region"),
		Link:     rapid.SampledFrom([]topology.LinkState{topology.LinkUnknown, topology.LinkUp, topology.LinkDown}).Draw(t, "link"),
		RTT:      time.Duration(rapid.Int64Range(0, int64(maxRTT/time.Microsecond)).Draw(t, "rtt")) * time.Microsecond,
		Gateways: rapid.SliceOfN(rapid.Custom(genGateway), 0, 3).Draw(t, "gateways"),
		Pods: rapid.SliceOfN(rapid.Map(genAddr, func(a netip.Addr) netip.Prefix {
			return netip.PrefixFrom(a, a.BitLen()/2).Masked()
		}), 0, 2).Draw(t, "pods"),
	}
}

func genExport(t *rapid.T) *topology.Export {
	return &topology.Export{
		Name: genName(t), Ports: genPorts.Draw(t, "ports"), UDPPorts: genPorts.Draw(t, "udp_ports"),
		Audience: rapid.SliceOfN(rapid.Custom(genCluster), 0, 3).Draw(t, "audience"), Endpoints: genEndpoints(t),
		Hosts: rapid.SliceOfN(genAddr, 0, 3).Draw(t, "hosts"), Drill: genDrill(t),
	}
}

func genInbound(t *rapid.T) *topology.Inbound {
	in := &topology.Inbound{Name: genName(t), Drill: genDrill(t)}
	for range rapid.IntRange(0, 3).Draw(t, "ports") {
		in.Ports = append(in.Ports, topology.InboundPort{
			Number: genPort.Draw(t, "port"), Protocol: genProto.Draw(t, "protocol"),
			Targets: rapid.SliceOfN(rapid.Custom(genAddrPort), 0, 3).Draw(t, "targets"),
		})
	}
	for range rapid.IntRange(0, 2).Draw(t, "udp_ports") {
		in.Ports = append(in.Ports, topology.InboundPort{
			Number: genPort.Draw(t, "port"), Protocol: topology.UDP, Targets: rapid.SliceOfN(rapid.Custom(genAddrPort), 0, 3).Draw(t, "targets"),
		})
	}
	for range rapid.IntRange(0, 2).Draw(t, "sets") {
		in.Access = append(in.Access, genAccess(t))
	}
	for range rapid.IntRange(0, 2).Draw(t, "quotas") {
		in.Quotas = append(in.Quotas, genQuota(t))
	}
	return in
}

func genSelf(t *rapid.T) topology.Self {
	return topology.Self{
		Cluster: genCluster(t), Domain: genDomain(t), Locality: genLocality(t),
		Namespace: genText.Draw(t, "namespace"), Workload: genText.Draw(t, "workload"),
	}
}

func genBundle(t *rapid.T, td spiffeid.TrustDomain) BundleData {
	b := BundleData{Authorities: authorities()[:rapid.IntRange(0, 2).Draw(t, "authorities")]}
	b.Revoked = make(map[[32]byte]struct{})
	for range rapid.IntRange(0, 3).Draw(t, "revoked") {
		b.Revoked[[32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key"))] = struct{}{}
	}
	b.RevokedIDs = make(map[spiffeid.ID]time.Time)
	for range rapid.IntRange(0, 3).Draw(t, "revoked IDs") {
		id, err := spiffeid.FromPathf(td, "/ns/shop/sa/%d", rapid.IntRange(0, 5).Draw(t, "account"))
		if err != nil {
			t.Fatal(err)
		}
		b.RevokedIDs[id] = time.Time{}
		if s := rapid.Int64Range(0, 1<<35).Draw(t, "begun by"); s > 0 {
			b.RevokedIDs[id] = time.Unix(s, 0)
		}
	}
	b.JWTAuthorities = make(map[string]crypto.PublicKey)
	for i, c := range b.Authorities {
		b.JWTAuthorities[fmt.Sprint("key-", i)] = c.PublicKey
	}
	return b
}

// authorities are two roots.
var authorities = sync.OnceValue(func() []*x509.Certificate {
	var out []*x509.Certificate
	for i := range 2 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), NotAfter: time.Now().Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			panic(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			panic(err)
		}
		out = append(out, c)
	}
	return out
})

// service returns a service with one port, as tests want it; n makes versions differ.
func service(tb testing.TB, name string, n int) *topology.Service {
	tb.Helper()
	parsed, err := topology.ParseServiceName(name)
	if err != nil {
		tb.Fatal(err)
	}
	return &topology.Service{
		Name: parsed, Imported: true,
		Ports:   []topology.Port{{Number: 80, Protocol: topology.HTTP}},
		Remotes: []topology.Remote{{Cluster: cluster(tb, "us"), Ports: []uint16{80}, Ready: n}},
	}
}

func cluster(tb testing.TB, name string) topology.ClusterName {
	tb.Helper()
	c, err := topology.ParseClusterName(name)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func genPatterns(t *rapid.T) []access.Pattern {
	var out []access.Pattern
	for range rapid.IntRange(0, 2).Draw(t, "patterns") {
		out = append(out, access.Pattern{
			Text: genText.Draw(t, "pattern"), Kind: rapid.SampledFrom([]access.Kind{access.Exact, access.Prefix, access.Suffix}).Draw(t, "kind"),
		})
	}
	return out
}

func genTexts(t *rapid.T) []string {
	var out []string
	for range rapid.IntRange(0, 2).Draw(t, "texts") {
		out = append(out, genText.Draw(t, "text"))
	}
	return out
}

func genSources(t *rapid.T) []access.Source {
	var out []access.Source
	for range rapid.IntRange(0, 2).Draw(t, "sources") {
		s := access.Source{
			Principals: genPatterns(t), Namespaces: genTexts(t), ServiceAccounts: genTexts(t), Nobody: rapid.Bool().Draw(t, "nobody"),
		}
		for range rapid.IntRange(0, 2).Draw(t, "domains") {
			s.Domains = append(s.Domains, genDomain(t))
		}
		out = append(out, s)
	}
	return out
}

func genOperations(t *rapid.T) []access.Operation {
	var out []access.Operation
	for range rapid.IntRange(0, 2).Draw(t, "operations") {
		o := access.Operation{Methods: genTexts(t), Paths: genPatterns(t)}
		for range rapid.IntRange(0, 2).Draw(t, "ports") {
			o.Ports = append(o.Ports, genPort.Draw(t, "port"))
		}
		for range rapid.IntRange(0, 2).Draw(t, "headers") {
			h := access.Header{Name: genLabel.Draw(t, "header"), Absent: rapid.Bool().Draw(t, "absent")}
			if !h.Absent {
				h.Values = genPatterns(t)
			}
			o.Headers = append(o.Headers, h)
		}
		out = append(out, o)
	}
	return out
}

func genIssuers(t *rapid.T) []access.Issuer {
	var out []access.Issuer
	for range rapid.IntRange(0, 2).Draw(t, "issuers") {
		out = append(out, access.Issuer{
			Name: genText.Draw(t, "name"), Issuer: genText.Draw(t, "issuer"), Audiences: genTexts(t), JWKS: genText.Draw(t, "jwks"),
			JWKSFile: genLabel.Draw(t, "file"), JWKSURL: genText.Draw(t, "url"), Header: genText.Draw(t, "header"),
		})
	}
	return out
}

func genAccess(t *rapid.T) []access.Policy {
	var out []access.Policy
	for range rapid.IntRange(0, 2).Draw(t, "policies") {
		p := access.Policy{Name: genText.Draw(t, "name"), Audit: rapid.Bool().Draw(t, "audit"), Issuers: genIssuers(t)}
		for range rapid.IntRange(0, 2).Draw(t, "rules") {
			r := access.Rule{Name: genText.Draw(t, "rule"), Deny: rapid.Bool().Draw(t, "deny"), From: genSources(t), To: genOperations(t)}
			for range rapid.IntRange(0, 2).Draw(t, "users") {
				u := access.User{Issuer: genText.Draw(t, "issuer")}
				for range rapid.IntRange(0, 2).Draw(t, "claims") {
					u.Claims = append(u.Claims, access.Claim{Path: append(genTexts(t), "x"), Values: genPatterns(t)})
				}
				r.Users = append(r.Users, u)
			}
			p.Rules = append(p.Rules, r)
		}
		out = append(out, p)
	}
	return out
}

func genQuota(t *rapid.T) topology.Quota {
	limit := genLabel.Draw(t, "limit")
	return topology.Quota{
		Name: "shop/q/" + limit, Audit: rapid.Bool().Draw(t, "audit"), Issuers: genIssuers(t),
		Per: rapid.SampledFrom([]topology.QuotaPer{topology.PerCaller, topology.PerEndUser, topology.PerService}).Draw(t, "per"),
		To:  []access.Operation{{Methods: []string{"GET"}}},
		Limit: quota.Limit{
			Name: limit, Rate: rapid.Float64Range(0.001, quota.MaxRate).Draw(t, "rate"), Burst: rapid.IntRange(0, quota.MaxBurst).Draw(t, "burst"),
			Window: time.Duration(rapid.IntRange(0, 3_600_000).Draw(t, "window")) * time.Millisecond, Shared: rapid.Bool().Draw(t, "shared"),
			Replicas: rapid.IntRange(0, quota.MaxReplicas).Draw(t, "replicas"),
		},
	}
}
