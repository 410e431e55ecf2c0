package kube

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/live"
)

// reading is what the caches hold at one moment. Nothing in it may be changed: it is the caches' own.
type reading struct {
	namespace string // control's own
	services  []corev1.Service
	slices    []discoveryv1.EndpointSlice
	pods      []corev1.Pod
	exports   []mcsv1beta1.ServiceExport
	workloads []meshv1alpha1.Workload
	peers     []meshv1alpha1.ClusterPeer
	policies  []meshv1alpha1.FailoverPolicy
	domains   []meshv1alpha1.FederatedTrustDomain
	access    []meshv1alpha1.AccessPolicy
	quotas    []meshv1alpha1.QuotaPolicy
	nodes     []corev1.Node
}

// reader publishes what the caches hold.
type reader struct {
	cfg     Config
	source  string
	reads   client.Reader
	objects *live.Value[*control.Objects]
	wake    chan struct{} // holds one

	mu       sync.Mutex
	troubles []control.Problem // guarded by mu; the writer's
	findings []control.Problem // guarded by mu; the injection's

	// Of run's goroutine.
	memory   memory
	problems control.ProblemLog
}

// trouble takes all that the writer has to tell of now.
func (r *reader) trouble(problems []control.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.troubles, problems) {
		r.troubles = problems
		poke(r.wake)
	}
}

// found takes all that the injection has to tell of now.
func (r *reader) found(problems []control.Problem) {
	problems = control.SortProblems(problems)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.findings, problems) {
		r.findings = problems
		poke(r.wake)
	}
}

// run publishes until ctx ends. Every kind must have been read before.
func (r *reader) run(ctx context.Context) {
	for {
		began := time.Now()
		if err := r.publish(ctx); err != nil && ctx.Err() == nil {
			// Reading a cache in memory fails only where this program is wrong.
			r.cfg.Log.ErrorContext(ctx, "caches not read", "error", err)
		}
		took := time.Since(began)
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		if !pause(ctx, min(max(r.cfg.Settle, 2*took), settleMost)) {
			return
		}
	}
}

// publish looks at the caches and puts in force what they hold, if that is news.
func (r *reader) publish(ctx context.Context) error {
	// A wake that comes from here on is for the next time.
	select {
	case <-r.wake:
	default:
	}
	now, err := r.read(ctx)
	if err != nil {
		return err
	}
	next, memory := convert(now, r.memory)
	r.memory = memory
	r.mu.Lock()
	next.Problems = control.SortProblems(slices.Concat(next.Problems, r.troubles, r.findings))
	r.mu.Unlock()
	next.Source = r.source
	r.problems.Report(ctx, next.Problems)
	if last := r.objects.Load(); last != nil {
		next.Loaded = last.Loaded
		if reflect.DeepEqual(last, next) {
			return nil
		}
	}
	next.Loaded = r.cfg.Now()
	r.objects.Store(next)
	r.cfg.Log.LogAttrs(ctx, slog.LevelDebug, "objects in force", slog.Int("objects", next.Len()), slog.Int("problems", len(next.Problems)))
	return nil
}

func (r *reader) read(ctx context.Context) (*reading, error) {
	var (
		services  corev1.ServiceList
		endpoints discoveryv1.EndpointSliceList
		pods      corev1.PodList
		exports   mcsv1beta1.ServiceExportList
		workloads meshv1alpha1.WorkloadList
		peers     meshv1alpha1.ClusterPeerList
		policies  meshv1alpha1.FailoverPolicyList
		domains   meshv1alpha1.FederatedTrustDomainList
		access    meshv1alpha1.AccessPolicyList
		quotas    meshv1alpha1.QuotaPolicyList
		nodes     corev1.NodeList
	)
	for _, list := range []client.ObjectList{&services, &endpoints, &pods, &exports, &workloads, &peers, &policies, &domains, &access, &quotas, &nodes} {
		if err := r.reads.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, err
		}
	}
	return &reading{
		namespace: r.cfg.Namespace,
		services:  services.Items, slices: endpoints.Items, pods: pods.Items, exports: exports.Items,
		workloads: workloads.Items, peers: peers.Items, policies: policies.Items, domains: domains.Items, access: access.Items, quotas: quotas.Items, nodes: nodes.Items,
	}, nil
}

func metadataListOf(kind string) *metav1.PartialObjectMetadataList {
	return &metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: kind + "List"}}
}
