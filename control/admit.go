package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/trust"
)

// errNotLoaded says that control can't tell yet who may exist.
var errNotLoaded = fmt.Errorf("the manifests have not been read yet, try again: %w", configstream.ErrUndecided)

var errNoWorkload = errors.New("there is no Workload")

// directory says which programs may exist: workloads by the registry, gateways and node proxies by the roster.
type directory struct {
	domain   spiffeid.TrustDomain
	registry Registry
	fleet    *fleet
	nodes    nodeNames
	index    atomic.Pointer[workloadIndex]
}

// workloadIndex finds the workloads of a registry's state: each config stream is judged whenever something has changed. Immutable.
type workloadIndex struct {
	of       *Objects
	byID     map[string]*Workload
	accounts map[[2]string]struct{} // namespace and service account
}

// workloads returns the index of the present state; nil while there is none.
func (d *directory) workloads() *workloadIndex {
	objects := d.registry.Objects().Load()
	if objects == nil {
		return nil
	}
	if x := d.index.Load(); x != nil && x.of == objects {
		return x
	}
	x := &workloadIndex{
		of: objects, byID: make(map[string]*Workload, len(objects.Workloads)), accounts: make(map[[2]string]struct{}),
	}
	for i := range objects.Workloads {
		w := &objects.Workloads[i]
		x.byID[w.ID()] = w
		x.accounts[[2]string{w.Namespace, w.ServiceAccount}] = struct{}{}
	}
	d.index.Store(x)
	return x
}

// nodeNames says which node proxies may join, and stand in for copies without a sidecar.
type nodeNames struct {
	listed   []string // in control's configuration
	attested bool     // and whoever the platform says is one
}

func (n nodeNames) may(name string) bool { return n.attested || slices.Contains(n.listed, name) }

// workload returns the workload of that name, "namespace/name".
func (d *directory) workload(id string) (*Workload, error) {
	index := d.workloads()
	if index == nil {
		return nil, errNotLoaded
	}
	if w := index.byID[id]; w != nil {
		return w, nil
	}
	return nil, fmt.Errorf("%w %s", errNoWorkload, id)
}

// identity returns the SPIFFE ID of a program that may exist now.
func (d *directory) identity(program, name string) (spiffeid.ID, error) {
	switch program {
	case configstream.ProgramSidecar:
		w, err := d.workload(name)
		if err != nil {
			return spiffeid.ID{}, err
		}
		return trust.WorkloadID(d.domain, w.Namespace, w.ServiceAccount)
	case configstream.ProgramGateway:
		if !nameSegment.MatchString(name) {
			return spiffeid.ID{}, fmt.Errorf("gateway %q: want lower-case letters, digits and inner hyphens, at most 63", name)
		}
		return trust.GatewayID(d.domain, name)
	case configstream.ProgramNode:
		if !d.nodes.may(name) {
			return spiffeid.ID{}, fmt.Errorf("there is no node proxy %q: control's configuration (nodeProxies) names them", name)
		}
		return trust.NodeID(d.domain, name)
	default:
		return spiffeid.ID{}, fmt.Errorf("unknown program %q", program)
	}
}

// granted returns the SPIFFE ID of who a token is good for. A workload that the platform vouches for is the one that runs as what the
// platform says; one of its name that runs as something else is its predecessor, or its successor.
func (d *directory) granted(g grant) (spiffeid.ID, error) {
	if !g.attested || g.program != configstream.ProgramSidecar {
		return d.identity(g.program, g.name)
	}
	w, err := d.workload(g.name)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if w.ServiceAccount != g.account {
		return spiffeid.ID{}, fmt.Errorf("%w %s of the service account %q, but one of %q", errNoWorkload, g.name, g.account, w.ServiceAccount)
	}
	return trust.WorkloadID(d.domain, w.Namespace, w.ServiceAccount)
}

// renewable returns which program an SVID is of, if that still exists: a workload of that service account, a gateway or a node proxy
// that has joined and was not removed.
func (d *directory) renewable(id spiffeid.ID) (program, name string, err error) {
	if !id.MemberOf(d.domain) {
		return "", "", fmt.Errorf("%s is not of %s", id, d.domain.Name())
	}
	if name, ok := trust.ParseGateway(id); ok {
		return configstream.ProgramGateway, name, d.joined(configstream.ProgramGateway, name)
	}
	if name, ok := trust.ParseNode(id); ok {
		if !d.nodes.may(name) {
			return "", "", fmt.Errorf("there is no node proxy %q any more", name)
		}
		return configstream.ProgramNode, name, d.joined(configstream.ProgramNode, name)
	}
	namespace, account, ok := trust.ParseWorkload(id)
	if !ok {
		return "", "", fmt.Errorf("%s is no program's identity", id)
	}
	index := d.workloads()
	if index == nil {
		return "", "", errNotLoaded
	}
	if _, ok := index.accounts[[2]string{namespace, account}]; !ok {
		return "", "", fmt.Errorf("no Workload has the service account %s/%s any more", namespace, account)
	}
	return configstream.ProgramSidecar, namespace + "/" + account, nil
}

func (d *directory) joined(program, name string) error {
	if !d.fleet.knows(program, name) {
		return fmt.Errorf("the %s %q has not joined, or was removed", program, name)
	}
	return nil
}

// admit checks that the SVID shown is that of the program that a Hello says it is, and returns what that may see. It is asked again while
// the stream lasts: a program that was removed hears nothing more.
func (d *directory) admit(id spiffeid.ID, h *configv1.Hello) (func(key string) bool, error) {
	receiver, err := configstream.ReceiverOf(h)
	if err != nil {
		return nil, err
	}
	program, name := cutProgram(receiver)
	want, err := d.identity(program, name)
	if err != nil {
		return nil, err
	}
	if id != want {
		return nil, fmt.Errorf("%s is not %s, who would be %s", id, receiver, want)
	}
	if program != configstream.ProgramSidecar {
		if err := d.joined(program, name); err != nil {
			return nil, err
		}
	}
	if err := checkHello(program, h); err != nil {
		return nil, err
	}
	return visibleTo(program), nil
}

// checkHello checks what a program says of where it is: others will dial it.
func checkHello(program string, h *configv1.Hello) error {
	switch program {
	case configstream.ProgramGateway:
		g := h.GetGateway()
		if !isHostPort(g.GetAddress()) || !isHostPort(g.GetQuicAddress()) {
			return fmt.Errorf("gateway addresses %q (TCP) and %q (QUIC): want host:port that others can dial, not link-local or multicast", clip(g.GetAddress(), 100), clip(g.GetQuicAddress(), 100))
		}
		if t := g.GetTcpAddress(); t != "" && !isHostPort(t) {
			return fmt.Errorf("gateway address %q (TCP, for links): want host:port that others can dial, not link-local or multicast, or nothing", clip(t, 100))
		}
		if len(g.GetZone()) > 63 {
			return errors.New("gateway zone: want at most 63 bytes")
		}
	case configstream.ProgramNode:
		a, err := netip.ParseAddrPort(h.GetInboundAddress())
		if err != nil || a.Port() == 0 || !isDialable(a.Addr()) {
			return fmt.Errorf("inbound address %q: want ip:port that callers can dial, not link-local or multicast", clip(h.GetInboundAddress(), 100))
		}
	}
	return nil
}

// visibleTo returns which resources a kind of program may see, besides those that are addressed to it alone.
func visibleTo(program string) func(key string) bool {
	return func(key string) bool {
		kind, _, _ := strings.Cut(key, "/")
		switch kind {
		case "export":
			return program == configstream.ProgramGateway
		case "service", "inbound":
			return program != configstream.ProgramGateway
		default:
			return true
		}
	}
}
