package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/live"
)

const (
	// writeTimeout bounds one request: an API server that hangs is as one that is away.
	writeTimeout = 10 * time.Second
	// echoTimeout is how long the cache may take to show what was written before it is written again.
	echoTimeout = 5 * time.Second
	// retryFirst is the pause after a first failure. It doubles up to retryMost, give or take a quarter.
	retryFirst = 250 * time.Millisecond
	retryMost  = 30 * time.Second
)

// writer brings what is in the API server to what control's last Status says, and keeps it there.
type writer struct {
	cfg     Config
	reads   client.Reader
	writes  client.Client
	status  *live.Value[*control.Status]
	trouble func([]control.Problem)
	wake    chan struct{} // holds one

	// Of run's goroutine.
	attempts map[object]attempt // the last write of what is not yet as it should be
	away     attempt            // of the API server as a whole
}

// attempt is a write that was tried, and when it may be tried again.
type attempt struct {
	base     string // resourceVersion that it was decided on
	failures int    // in a row
	until    time.Time
	refusal  error // for which somebody has to do something
}

func newWriter(cfg Config, reads client.Reader, writes client.Client, status *live.Value[*control.Status], trouble func([]control.Problem)) *writer {
	return &writer{
		cfg: cfg, reads: reads, writes: writes, status: status, trouble: trouble,
		wake: make(chan struct{}, 1), attempts: make(map[object]attempt),
	}
}

// run writes until ctx ends. Every kind must have been read before.
func (w *writer) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		if !pause(ctx, w.cfg.Settle) {
			return
		}
		again, err := w.round(ctx)
		if err != nil && ctx.Err() == nil {
			w.cfg.Log.ErrorContext(ctx, "caches not read", "error", err) // fails only where this program is wrong
		}
		timer.Stop()
		if again > 0 {
			timer.Reset(again)
		}
	}
}

// round writes what is due now. again is when to come back without being told; 0: need not.
func (w *writer) round(ctx context.Context) (again time.Duration, err error) {
	want := w.status.Load()
	if want == nil {
		return 0, nil
	}
	now, err := w.read(ctx)
	if err != nil {
		return 0, err
	}
	due, problems := plan(want, now)
	began := w.cfg.Now()
	later := func(until time.Time) {
		if d := max(until.Sub(began), time.Millisecond); again == 0 || d < again {
			again = d
		}
	}
	attempts := make(map[object]attempt, len(due))
	for i := range due {
		target := due[i].target()
		a := w.attempts[target]
		waits := a.until.After(began) && (a.failures > 0 || a.base == due[i].base())
		switch {
		case w.away.until.After(began):
			later(w.away.until)
		case waits:
			later(a.until)
		default:
			a = w.try(ctx, &due[i], a)
			later(latest(a.until, w.away.until))
		}
		if a != (attempt{}) {
			attempts[target] = a
		}
		if a.refusal != nil {
			problems = append(problems, control.Problem{
				Object: target.String(), Reason: fmt.Sprintf("%s: refused by the API server: %v", due[i].verb, a.refusal),
			})
		}
	}
	w.attempts = attempts
	w.trouble(control.SortProblems(problems))
	return again, nil
}

func (w *writer) read(ctx context.Context) (*written, error) {
	var (
		exports    mcsv1beta1.ServiceExportList
		peers      meshv1alpha1.ClusterPeerList
		domains    meshv1alpha1.FederatedTrustDomainList
		access     meshv1alpha1.AccessPolicyList
		quotas     meshv1alpha1.QuotaPolicyList
		failover   meshv1alpha1.FailoverPolicyList
		imports    mcsv1beta1.ServiceImportList
		endpoints  discoveryv1.EndpointSliceList
		namespaces = metadataListOf("Namespace")
	)
	for _, list := range []client.ObjectList{&exports, &peers, &domains, &access, &quotas, &failover, &imports, &endpoints, namespaces} {
		if err := w.reads.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, err
		}
	}
	out := &written{exports: exports.Items, peers: peers.Items, domains: domains.Items, failover: failover.Items, imports: imports.Items, slices: slices.DeleteFunc(endpoints.Items, isElsewhere), namespaces: make(map[string]bool, len(namespaces.Items))}
	for i := range access.Items {
		p := &access.Items[i]
		out.policies = append(out.policies, policy{accessKind, &p.ObjectMeta, p.Status})
	}
	for i := range quotas.Items {
		p := &quotas.Items[i]
		out.policies = append(out.policies, policy{quotaKind, &p.ObjectMeta, p.Status})
	}
	for i := range namespaces.Items {
		out.namespaces[namespaces.Items[i].Name] = namespaces.Items[i].DeletionTimestamp == nil
	}
	return out, nil
}

// try makes a write, and says when the next may follow.
func (w *writer) try(ctx context.Context, due *write, last attempt) attempt {
	bounded, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	base := due.base() // the client puts the answer into the object
	err := w.do(bounded, due)
	now := w.cfg.Now()
	if err == nil || answered(err) {
		w.away = attempt{}
	}
	switch {
	case err == nil:
		w.cfg.Log.InfoContext(ctx, "written", "object", due.target().String(), "what", string(due.verb))
		w.tell(bounded, due)
		return attempt{base: base, until: now.Add(echoTimeout)}
	case !answered(err): // it was not reached: neither would be the others
		w.away.failures++
		w.away.until = now.Add(backOff(w.away.failures))
		return last
	}
	next := attempt{base: base, failures: last.failures + 1, until: now.Add(backOff(last.failures + 1))}
	if !passing(err) {
		next.refusal = err
	}
	w.cfg.Log.DebugContext(ctx, "not written; trying again", "object", due.target().String(), "what", string(due.verb), "error", err)
	return next
}

// answered reports whether an error is an answer of the API server.
func answered(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// backOff returns the pause after so many failures in a row.
func backOff(failures int) time.Duration {
	d := min(retryFirst<<min(failures-1, 16), retryMost)
	return d - d/4 + rand.N(d/2) //nolint:gosec // G404: spreads attempts, guards nothing
}

// passing reports whether an error ends without anybody doing something: the cache was behind, or the server is busy.
func passing(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) ||
		apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err) ||
		apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}
