// Package configstream is how control tells gateways and sidecars what they need, and both ends of its codec.
//
// A cluster's configuration is a set of keyed resources: a World. Control makes a World from the present state of
// things and hands it to a Server; each client holds the part of it that it may see and, of the services, only those
// that it subscribed to. What travels is the difference between the two, in messages of at most about MaxMessage
// bytes; the last of a consistent cut says so (Response.complete), and a Client applies a cut as a whole or not at all.
//
// Who uses it: control (Server, NewWorld, the Encode functions); gateway and sidecar, through internal/agent (Client).
//
// Concurrency: a World and everything that it was made from are immutable. Each stream of a Server has one owner, the
// handler's goroutine; it computes what to send from the World of that moment, so a slow reader costs one message, never
// a queue. A Client has one owner loop, Run; what it publishes are immutable values behind live.Value. All exported
// methods are safe for concurrent use.
//
// The wire is api/config/v1; docs/configstream.md tells it in words.
package configstream

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// What the messages of both directions may hold at most.
const (
	// MaxMessage is what a Response is filled up to. A single resource may exceed it, up to MaxResource.
	MaxMessage = 1 << 20
	// MaxPorts is how many ports a service may have: as many for TCP, and as many for all else.
	MaxPorts = 256
	// MaxResource is the largest resource that is sent; a World withholds a larger one.
	MaxResource = 2 << 20
	// MaxReceive is what either end takes in one message: a resource of MaxResource and its frame, or a Hello with MaxHave.
	MaxReceive = 4 << 20
	// MaxSubscriptions is how many services one client may subscribe to.
	MaxSubscriptions = 10_000
	// MaxHave is how many resources a client may hold, and a node proxy say that it holds: the services that it subscribed to, and what it
	// serves for each workload of its cluster that has no sidecar. limitsOf has what others may say.
	MaxHave = 3 * MaxSubscriptions
	// MaxKey is the longest key, in bytes: two names of 253 bytes, a service name and the slashes between.
	MaxKey = 700
)

const (
	maxStreamsPerConnection = 8
	keepaliveTime           = 10 * time.Second // of silence, before a client probes
	keepaliveTimeout        = 5 * time.Second
	// Clients that connected together would all lose their connection together, when control's SVID of that moment ends. An
	// age limit, to which gRPC adds a jitter of a tenth, spreads them out before that; a client resumes at the cost of a Hello.
	maxConnectionAge      = 20 * time.Minute
	maxConnectionAgeGrace = 10 * time.Second
)

// ErrUnavailable says that control could not be asked.
var ErrUnavailable = errors.New("control is unavailable")

// ErrUndecided says, from ServerConfig.Admit, that it can't be told now whether a program may be.
var ErrUndecided = errors.New("it can't be told now who may exist")

// ErrTooManyServices says that a client is subscribed to MaxSubscriptions services that exist.
var ErrTooManyServices = errors.New("too many services")

// ServerOptions are what a gRPC server that carries the stream must be made with: they match what clients do.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxReceive),
		grpc.MaxConcurrentStreams(maxStreamsPerConnection),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 2 * keepaliveTime, Timeout: keepaliveTimeout,
			MaxConnectionAge: maxConnectionAge, MaxConnectionAgeGrace: maxConnectionAgeGrace,
		}),
	}
}

// DialOptions are what a gRPC client that carries the stream must be made with, besides its credentials.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxReceive)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
	}
}

// The kinds of resource: the first element of a key.
const (
	kindSelf    = "self"
	kindBundle  = "bundle"
	kindGateway = "gateway"
	kindCluster = "cluster"
	kindService = "service"
	kindExport  = "export"
	kindInbound = "inbound"
)

// The programs that a stream is for, as Hello.program says.
const (
	ProgramGateway = "gateway"
	ProgramSidecar = "sidecar"
	ProgramNode    = "node"
)

// limitsOf returns how many resources a program may say that it holds, and how many services it may subscribe to.
func limitsOf(program string) (have, services int) {
	const rest = 2_000 // bundles, clusters, gateways, and what one workload serves
	switch program {
	case ProgramGateway:
		return MaxSubscriptions + rest, 0 // the exports of its cluster, which are manifests (10,000 at most); it calls no service
	case ProgramSidecar:
		return MaxSubscriptions + rest, MaxSubscriptions
	default:
		return MaxHave, MaxSubscriptions
	}
}

// ServiceKey returns the key of a service's resource.
func ServiceKey(s topology.ServiceName) string { return kindService + "/" + s.String() }

// BundleKey returns the key of a trust domain's resource.
func BundleKey(td spiffeid.TrustDomain) string { return kindBundle + "/" + td.Name() }

// ReceiverOf returns who a Hello is from, as it stands in the keys of what only that program receives: "sidecar/shop/checkout-0",
// "node/node-0", "gateway/gateway-0".
func ReceiverOf(h *configv1.Hello) (string, error) {
	var receiver string
	switch h.GetProgram() {
	case ProgramSidecar:
		receiver = ProgramSidecar + "/" + h.GetWorkload()
	case ProgramNode:
		receiver = ProgramNode + "/" + h.GetWorkload()
	case ProgramGateway:
		receiver = ProgramGateway + "/" + h.GetGateway().GetId()
	default:
		return "", fmt.Errorf("configstream: program %q: want %q, %q or %q", h.GetProgram(), ProgramGateway, ProgramSidecar, ProgramNode)
	}
	if err := checkReceiver(receiver); err != nil {
		return "", fmt.Errorf("configstream: %w", err)
	}
	return receiver, nil
}

// checkReceiver checks the form of <program>/<name>.
func checkReceiver(r string) error {
	program, name, _ := strings.Cut(r, "/")
	names := []string{name}
	switch program {
	case ProgramSidecar:
		if names = strings.Split(name, "/"); len(names) != 2 {
			return fmt.Errorf("receiver %q: want sidecar/<namespace>/<name>", r)
		}
	case ProgramNode, ProgramGateway:
	default:
		return fmt.Errorf("receiver %q: unknown program", r)
	}
	for _, n := range names {
		if !isName(n) {
			return fmt.Errorf("receiver %q: want names of letters, digits, '-', '.' and '_', 1 to 253 long", r)
		}
	}
	return nil
}

// isName reports whether s can name a workload, a node or a gateway: a DNS name, or a segment of a SPIFFE path.
func isName(s string) bool {
	if s == "" || len(s) > 253 || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return false
		}
	}
	return true
}
