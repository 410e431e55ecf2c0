package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"

	"github.com/isthmus-mesh/isthmus/internal/netns"
)

// Runtime is what a program of a playground has for a network.
type Runtime string

// The runtimes.
const (
	// Local programs share the machine's own loopback address, and differ by their ports.
	Local Runtime = "local"
	// Netns programs have an address each, in network namespaces; between clusters lies a WAN that is as bad as one says.
	Netns Runtime = "netns"
)

// networkOf names the network of the playground in dir, and who is in it.
func networkOf(dir string, spec Spec) *netns.Network {
	sum := sha256.Sum256([]byte(dir))
	n := &netns.Network{Name: "isthmus" + hex.EncodeToString(sum[:2])}
	for _, c := range spec.Clusters {
		s := netns.Site{Name: c.Name}
		for _, u := range c.units() {
			if h := u.host(); !slices.Contains(s.Hosts, h) {
				s.Hosts = append(s.Hosts, h)
			}
		}
		n.Sites = append(n.Sites, s)
	}
	return n
}

// host is the machine of its cluster that a program runs on: an application and its sidecar share one.
func (u unit) host() string {
	if u.program == App || u.program == Sidecar {
		return u.workload.Name
	}
	return u.name
}

// runtime returns what the playground runs on.
func (st state) runtime() Runtime {
	if st.Network != nil {
		return Netns
	}
	return Local
}

// hostOf returns the address that a program listens on.
func (st state) hostOf(u unit) string {
	if st.Network == nil {
		return loopbackHost
	}
	return st.Network.Address(u.cluster, u.host()).String()
}

// address returns where a program listens.
func (st state) address(u unit, purpose string) string {
	return net.JoinHostPort(st.hostOf(u), strconv.Itoa(st.port(u, purpose)))
}

// NamespaceOf returns the network namespace that a process is in; empty: the machine's own.
func (p *Playground) NamespaceOf(cluster, process string) string {
	for _, u := range p.state.all() {
		if u.cluster == cluster && u.name == process && p.state.Network != nil {
			return p.state.Network.Host(u.cluster, u.host())
		}
	}
	return ""
}

// firstFixedPort is the first of the ports in a network of the playground's own, where nobody else has any.
const firstFixedPort = 10001

// placed returns how a command is run where the unit is.
func (st state) placed(u unit, c command) (command, error) {
	if st.Network == nil {
		return c, nil
	}
	var err error
	c.path, c.args, err = netns.Command(st.Network.Host(u.cluster, u.host()), c.path, c.args)
	if err != nil {
		return c, fmt.Errorf("%s: %w", u.id(), err)
	}
	return c, nil
}

// near returns a client that speaks to a program from where it is, and keeps no connection: the next answer must come from whoever
// listens then.
func (st state) near(u unit) *http.Client {
	if st.Network == nil {
		return plainHTTP
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: st.dialer(u)}}
}

// dialer connects from where a program is, in the playground's network.
func (st state) dialer(u unit) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return netns.Dial(ctx, st.Network.Host(u.cluster, u.host()), network, address)
	}
}
