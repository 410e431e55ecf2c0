package lab

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/netns"
)

// With Netns, each workload's machine has rules of the kernel by which calls to addresses of the clusterset come to its sidecar: an application
// there needs no proxy, only a resolver (DNSOf).
const (
	capturedPort = 15006
	clusterSet   = "241.0.0.0/8" // where a control takes the addresses of imports from unless it is told otherwise
	sidecarUser  = 0             // all programs run as root there
	// appUser is who an application is, to be told from its sidecar: nobody.
	appUser = 65534
)

// capture puts the rules in force, before any program is started.
func (p *Playground) capture(ctx context.Context) error {
	program, err := p.opts.Binaries.path(Capture)
	if err != nil {
		return err
	}
	for _, u := range p.state.all() {
		if u.program != Sidecar {
			continue
		}
		path, args, err := netns.Command(p.state.Network.Host(u.cluster, u.host()), program,
			[]string{"--to", clusterSet, "--port", strconv.Itoa(capturedPort), "--skip-user", strconv.Itoa(sidecarUser)})
		if err != nil {
			return fmt.Errorf("%s: %w", u.id(), err)
		}
		if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil { //nolint:gosec // G204: a program of ours
			return fmt.Errorf("playground: %s: calls by address can't be captured: %w: %s", u.id(), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// AppDialerOf returns how the application of a workload makes connections, which knows nothing of a mesh: it resolves the name, and opens a
// connection to the address; the kernel brings it to the sidecar. nil where nothing is captured.
func (p *Playground) AppDialerOf(workload string) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	u, err := p.state.sidecarOf(workload)
	if err != nil || p.state.Network == nil {
		return nil, err
	}
	namespace, server := p.state.Network.Host(u.cluster, u.host()), p.state.address(u, "dns")
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return netns.Dial(ctx, namespace, network, server)
	}}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		found, err := resolver.LookupNetIP(ctx, "ip4", strings.TrimSuffix(host, ".")+".")
		if err != nil {
			return nil, err
		}
		return netns.DialAs(ctx, namespace, appUser, network, net.JoinHostPort(found[0].String(), port))
	}, nil
}
