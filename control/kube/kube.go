// Package kube is a control.Registry over the API server of a Kubernetes cluster.
//
// It watches Services, EndpointSlices, Pods, Namespaces, the zones of Nodes, ServiceExports and ServiceImports (KEP-1645, v1beta1), and the
// kinds of isthmus.dev/v1alpha1. Events only wake: once they have been still for a moment, what the caches hold is turned into one
// immutable control.Objects by a function that knows nothing else. Nothing is published until every kind has been read once, and losing
// the API server leaves the last state in force: what could not be looked at is no word on what is there.
//
// One bad object is a Problem and hides no other; the last good version of it that this process saw stays in force.
//
// What became of the exports goes into the status of the ServiceExports; ServiceImports stand in each namespace that an import is for,
// and only those that carry ManagedByLabel are ever changed or deleted. Both are compared with the caches whenever something moves, so
// that an import which somebody edited or removed comes back, and a namespace that appears later gets its imports.
//
// control uses it through control.Registry. Run owns three loops: the reader's (objects.go), which publishes, and the writer's
// (writer.go), which writes, and the injection's, which keeps the webhook known to the API server and finds Pods that it missed. They share nothing but what is guarded here.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/inject"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/ready"
)

// Names that users and other programs meet.
const (
	// FieldManager is who control is to server-side apply, and in managedFields.
	FieldManager = "isthmus"
	// ManagedByLabel with the value ManagedBy is on each ServiceImport that is control's.
	ManagedByLabel = "isthmus.dev/managed-by"
	// ManagedBy is the value of ManagedByLabel, and of endpointslice.kubernetes.io/managed-by on slices that are ours.
	ManagedBy = "isthmus-control"
	// InboundPortAnnotation on a Pod makes it a Workload that has a sidecar, and says on which port of the Pod that takes mTLS.
	InboundPortAnnotation = inject.InboundPortAnnotation
)

const (
	// defaultSettle is how long after the first event of a burst the caches are looked at: a rollout is tens of events a second,
	// and what follows from each takes milliseconds.
	defaultSettle = 50 * time.Millisecond
	// settleMost bounds the settle time where looking takes long: at most a third of a core goes into it.
	settleMost = time.Second
	// clientQPS and clientBurst are requests a second. Writes go one after the other; the server's priority and fairness does the
	// rest.
	clientQPS, clientBurst = 100, 200
)

// checkKubernetes is the condition of readiness: every kind has been read once.
const checkKubernetes = "kubernetes"

// Config is what a Kube is made from. The zero value is the cluster that the process runs in.
type Config struct {
	// Kubeconfig is a file with the credentials. Empty: those of the Pod that the process runs in.
	Kubeconfig string
	// Context of Kubeconfig. Empty: its current one.
	Context string
	// Audience is who service account tokens must be made out to, for Attest. Empty: none is good.
	Audience string
	// Namespace is where control and the mesh's own programs are. Default: that of the Pod, else isthmus-system.
	Namespace string
	// Webhook is the name of the MutatingWebhookConfiguration by which the API server calls control's webhook. Its caBundle is kept to be
	// what Roots returns, PEM; nothing while they are not known. Empty: there is none.
	Webhook string
	Roots   func() []byte
	Settle  time.Duration        // how long events are gathered; default 50 ms
	Checks  *ready.Checks        // default: none
	Metrics *prometheus.Registry // default: none
	Log     *slog.Logger         // default: none. The libraries' own log lines go there too
	Now     func() time.Time     // default time.Now
}

func (c Config) withDefaults() Config {
	if c.Namespace == "" {
		c.Namespace = podNamespace()
	}
	if c.Settle <= 0 {
		c.Settle = defaultSettle
	}
	if c.Checks == nil {
		c.Checks = ready.New()
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Kube is a Registry. Make one with New, and Run it.
type Kube struct {
	cfg     Config
	source  string // the API server's address
	objects *live.Value[*control.Objects]
	status  *live.Value[*control.Status]
	caches  cache.Cache
	http    *http.Client
	watches *watches

	reader    *reader
	writer    *writer
	attestor  *attestor
	injection *injection
}

var (
	_ control.Registry = (*Kube)(nil)
	_ control.Attestor = (*Kube)(nil)
)

// New reads the credentials. The API server is first asked by Run; it need not be there yet.
func New(cfg Config) (*Kube, error) {
	cfg = cfg.withDefaults()
	routeLogs(cfg.Log)
	api, err := restConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("kube: %w", err)
	}
	k := &Kube{
		cfg: cfg, source: api.Host,
		objects: new(live.Value[*control.Objects]), status: new(live.Value[*control.Status]),
		watches: newWatches(cfg),
	}
	reach, err := newReach(cfg, k.watches)
	if err != nil {
		return nil, fmt.Errorf("kube: %w", err)
	}
	api.Wrap(reach.wrap)
	if k.http, err = rest.HTTPClientFor(api); err != nil {
		return nil, fmt.Errorf("kube: %w", err)
	}
	if k.caches, err = newCaches(api, k.http, k.watches.failed); err != nil {
		return nil, fmt.Errorf("kube: %w", err)
	}
	writes, err := client.New(api, client.Options{HTTPClient: k.http, Scheme: scheme, Mapper: mapper})
	if err != nil {
		return nil, fmt.Errorf("kube: %w", err)
	}
	k.assemble(k.caches, writes)
	cfg.Checks.Waiting(checkKubernetes, "not all kinds have been read yet")
	return k, nil
}

// assemble makes the two loops over what reads and what writes.
func (k *Kube) assemble(reads client.Reader, writes client.Client) {
	k.reader = &reader{
		cfg: k.cfg, source: k.source, reads: reads, objects: k.objects,
		wake: make(chan struct{}, 1), problems: control.ProblemLog{Log: k.cfg.Log},
	}
	k.attestor = &attestor{live: writes, audience: k.cfg.Audience, namespace: k.cfg.Namespace}
	k.writer = newWriter(k.cfg, reads, writes, k.status, k.reader.trouble)
	k.injection = &injection{cfg: k.cfg, reads: reads, writes: writes, found: k.reader.found}
}

// Objects holds the present state; nil until every kind was read once.
func (k *Kube) Objects() *live.Value[*control.Objects] { return k.objects }

// PutStatus takes s over and returns at once. Run writes it, for as long as that takes; the last s counts.
func (k *Kube) PutStatus(_ context.Context, s *control.Status) error {
	k.status.Store(s)
	poke(k.writer.wake)
	return nil
}

// Run follows the API server until ctx ends, and then returns nil. It may be called once.
func (k *Kube) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer k.http.CloseIdleConnections()
	if err := k.listen(ctx); err != nil {
		return fmt.Errorf("kube: %w", err)
	}
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		errs  []error // guarded by mu
	)
	for _, part := range []func(context.Context) error{k.caches.Start, k.loops} {
		group.Go(func() {
			defer cancel() // neither ends before the other for a good reason
			if err := part(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("kube: %w", err))
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// loops runs the reader and the writer once every kind has been read.
func (k *Kube) loops(ctx context.Context) error {
	if !k.caches.WaitForCacheSync(ctx) {
		return nil // ctx has ended
	}
	k.watches.synced()
	k.cfg.Log.InfoContext(ctx, "every kind has been read", "api_server", k.source)
	var group sync.WaitGroup
	group.Go(func() { k.reader.run(ctx) })
	group.Go(func() { k.writer.run(ctx) })
	group.Go(func() { k.injection.run(ctx) })
	group.Wait()
	return nil
}

// poke wakes the loop behind wake, which holds one.
func poke(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// pause waits, and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
