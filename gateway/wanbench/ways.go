package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// path is how a client reaches the server: a connection to one of the addresses, by turns.
type path struct {
	Addresses []string `json:"addresses"`
	// Of our gateways: what a sidecar has.
	State    string   `json:"state,omitempty"` // folder of its SVID
	Roots    string   `json:"roots,omitempty"` // file of its trust domain's
	Gateways []string `json:"gateways,omitempty"`
}

// isthmus is dialled as sidecars do: TLS to a gateway of the own cluster, by turns, and a preamble with the first bytes.
func (s *stage) isthmus() way {
	w := way{mayUseUDP: true, path: path{
		State: filepath.Join(s.pg.Dir(), "eu", "web-sidecar", "state"), Roots: filepath.Join(s.pg.Dir(), "eu", "control", "state", "trust-bundle.pem"),
	}}
	for _, name := range []string{"gateway-0", "gateway-1"} {
		w.path.Addresses = append(w.path.Addresses, s.at("eu", name, "streams"))
		w.path.Gateways = append(w.path.Gateways, name)
		w.pids = append(w.pids, s.process("eu", name).Pid, s.process("us", name).Pid)
	}
	return w
}

type dial func(ctx context.Context) (net.Conn, error)

// dialer returns how a connection is made.
func (p path) dialer() (dial, error) {
	var all []dial
	for _, address := range p.Addresses {
		all = append(all, func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) })
	}
	if len(p.Gateways) > 0 {
		if err := p.throughGateways(all); err != nil {
			return nil, err
		}
	}
	var turn atomic.Int64
	return func(ctx context.Context) (net.Conn, error) { return all[int(turn.Add(1))%len(all)](ctx) }, nil
}

func (p path) throughGateways(all []dial) error {
	svid, err := trust.LoadSVID(p.State)
	if err != nil {
		return err
	}
	roots, err := os.ReadFile(p.Roots)
	if err != nil {
		return err
	}
	authorities, err := trust.ParsePEM(roots)
	if err != nil {
		return err
	}
	identity, bundles, td := trust.NewIdentity(), trust.NewBundles(), svid.ID.TrustDomain()
	identity.Set(svid)
	bundles.Set(td, trust.Bundle{Authorities: authorities})
	cluster, err1 := topology.ParseClusterName("us")
	service, err2 := topology.NewServiceName("shop", "checkout")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	opening := preamble.Preamble{Cluster: cluster, Service: service, Port: 7000}.Append(nil)
	for i, connect := range all {
		id, err := trust.GatewayID(td, p.Gateways[i])
		if err != nil {
			return err
		}
		config := trust.ClientConfig(trust.TLS{
			Identity: identity, Bundles: bundles, Policy: trust.AllowIDs(id), Protocols: []string{preamble.ALPNStream}, ServerName: td.Name(),
		})
		all[i] = func(ctx context.Context) (net.Conn, error) {
			raw, err := connect(ctx)
			if err != nil {
				return nil, err
			}
			c := tls.Client(raw, config)
			if err := c.HandshakeContext(ctx); err != nil {
				_ = raw.Close()
				return nil, err
			}
			return &opened{Conn: c, opening: opening}, nil
		}
	}
	return nil
}

// opened sends the preamble ahead of the first bytes, and takes the answer off the first that come.
type opened struct {
	net.Conn
	opening []byte
	heard   bool
}

func (c *opened) Write(p []byte) (int, error) {
	if c.opening == nil {
		return c.Conn.Write(p)
	}
	first := append(append([]byte(nil), c.opening...), p...)
	c.opening = nil
	n, err := c.Conn.Write(first)
	return max(0, n-len(first)+len(p)), err
}

func (c *opened) Read(p []byte) (int, error) {
	if !c.heard {
		if _, err := preamble.ReadReply(c.Conn); err != nil {
			return 0, err
		}
		c.heard = true
	}
	return c.Conn.Read(p)
}

// haproxy is a pair of them, with mutual TLS between, as two operators would set it up.
func (s *stage) haproxy() (way, error) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		return way{}, fmt.Errorf("haproxy is not installed: %w", err)
	}
	near, far := s.on("eu", "gateway-0", portHaproxy), s.on("us", "gateway-0", portHaproxy)
	const common = `global
  maxconn 4096
  nbthread 2
defaults
  mode tcp
  timeout connect 10s
  timeout client 60s
  timeout server 60s
`
	certificates := fmt.Sprintf("crt %s ca-file %s verify required", filepath.Join(s.dir, certificateFile), filepath.Join(s.dir, authorityFile))
	w := way{path: path{Addresses: []string{near}}}
	for _, p := range []struct{ cluster, config string }{
		{"us", common + fmt.Sprintf("frontend in\n  bind %s ssl %s\n  default_backend out\nbackend out\n  server s %s\n", far, certificates, s.on("us", "checkout-0-sidecar", portServer))},
		{"eu", common + fmt.Sprintf("frontend in\n  bind %s\n  default_backend out\nbackend out\n  server s %s ssl %s\n", near, far, certificates)},
	} {
		file := filepath.Join(s.dir, "haproxy-"+p.cluster+".cfg")
		if err := os.WriteFile(file, []byte(p.config), 0o600); err != nil {
			return way{}, err
		}
		pid, err := s.start(p.cluster, "gateway-0", program, "-db", "-f", file)
		if err != nil {
			return way{}, err
		}
		w.pids = append(w.pids, pid)
	}
	return w, nil
}

// h2 is a pair of proxies with one HTTP/2 connection between them.
func (s *stage) h2() (way, error) {
	near, far := s.on("eu", "gateway-1", portH2), s.on("us", "gateway-1", portH2)
	w := way{path: path{Addresses: []string{near}}}
	one, err1 := s.child("us", "gateway-1", "h2-far", s.dir, far, s.on("us", "checkout-0-sidecar", portServer))
	two, err2 := s.child("eu", "gateway-1", "h2-near", s.dir, near, far)
	w.pids = []int{one, two}
	return w, errors.Join(err1, err2)
}
