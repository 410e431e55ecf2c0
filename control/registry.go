package control

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/live"
)

// Registry is where the cluster's own objects are declared: a folder of manifests, or a Kubernetes API server.
//
// It runs by itself (each implementation has its own Run) and keeps Objects up to date. Events only wake: whoever follows
// it waits for a change and then reads the present value, so a registry may skip states that stood for a moment only.
type Registry interface {
	// Objects holds the present, complete state; nil until every source was read once. Safe for concurrent use.
	Objects() *live.Value[*Objects]
	// PutStatus writes back what became of the exports and which imports stand. It writes only what differs, and returns when
	// that is durable enough for the medium: one that a network lies before takes s over, and its Run goes on until it is
	// written. Called by one goroutine at a time.
	PutStatus(ctx context.Context, s *Status) error
}

// Objects is an immutable snapshot of all that is declared. Every slice is ordered by namespace and name, whatever the order
// of the sources, and holds each object once.
type Objects struct {
	Source   string    // where it comes from, e.g. the folder
	Loaded   time.Time // when it was read
	Services []Service
	Slices   []EndpointSlice
	// Workloads are the running copies, each with or without a sidecar.
	Workloads []Workload
	Exports   []ServiceExport
	Peers     []ClusterPeer
	Policies  []FailoverPolicy
	// Refused are the FailoverPolicies that are not understood as they stand. Of those that were before, Policies has that version.
	Refused  []RefusedPolicy
	Domains  []FederatedTrustDomain
	Access   []AccessPolicy
	Quotas   []QuotaPolicy
	Outside  Outside
	Network  Network
	Problems []Problem
}

// Outside is where other clusters reach this one, as far as the registry knows it better than the programs do: by the load balancers in
// front of them.
type Outside struct {
	Gateways map[string]string // host:port (UDP), by the gateway's ID
	Bus      []string          // URLs of the bus; used where none are configured
}

// Network is what the registry knows of the cluster's own addresses.
type Network struct {
	Pods  []netip.Prefix // of pods, ordered; none: not known
	Nodes []netip.Addr   // of machines, ordered
}

// Len returns the number of objects.
func (o *Objects) Len() int {
	return len(o.Services) + len(o.Slices) + len(o.Workloads) + len(o.Exports) + len(o.Peers) + len(o.Policies) + len(o.Domains) + len(o.Access) + len(o.Quotas)
}

// Source is a place in a manifest. The zero Source is that of an object which comes from no file.
type Source struct {
	File string // relative to the folder
	Line int    // 1-based; 0 is unknown
}

// String returns "file:line", as compilers print it.
func (s Source) String() string {
	if s.Line == 0 {
		return s.File
	}
	return fmt.Sprintf("%s:%d", s.File, s.Line)
}

// Problem is one thing wrong with what is declared. It never stops the rest.
type Problem struct {
	Source
	Object string // "Kind namespace/name"; empty when it is not known
	Reason string
	Note   bool // it may well be meant: it is said, and is nothing wrong
}

// String returns the problem in one line: where it is, as far as that is known, and what.
func (p Problem) String() string {
	out := p.Reason
	for _, where := range []string{p.Object, p.Source.String()} {
		if where != "" {
			out = where + ": " + out
		}
	}
	return out
}

// Compare orders problems by place, then by object and reason.
func (p Problem) Compare(o Problem) int {
	return cmp.Or(cmp.Compare(p.File, o.File), cmp.Compare(p.Line, o.Line), cmp.Compare(p.Object, o.Object), cmp.Compare(p.Reason, o.Reason))
}

// SortProblems puts problems into their order and drops repeated ones.
func SortProblems(p []Problem) []Problem {
	slices.SortFunc(p, Problem.Compare)
	return slices.Compact(p)
}

// ProblemLog logs each problem once when it appears, and once when it is gone. For one goroutine.
type ProblemLog struct {
	Log *slog.Logger

	said map[Problem]struct{}
}

// Report takes all problems of now.
func (l *ProblemLog) Report(ctx context.Context, problems []Problem) {
	now := make(map[Problem]struct{}, len(problems))
	for _, p := range problems {
		now[p] = struct{}{}
		if _, said := l.said[p]; !said {
			l.with(p).WarnContext(ctx, "manifest problem", "object", p.Object, "reason", p.Reason)
		}
	}
	for p := range l.said {
		if _, still := now[p]; !still {
			l.with(p).InfoContext(ctx, "manifest problem gone", "object", p.Object)
		}
	}
	l.said = now
}

// with says where the problem is, if it is in a file.
func (l *ProblemLog) with(p Problem) *slog.Logger {
	if at := p.Source.String(); at != "" {
		return l.Log.With("at", at)
	}
	return l.Log
}
