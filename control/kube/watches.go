package kube

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	toolscache "k8s.io/client-go/tools/cache"

	"github.com/isthmus-mesh/isthmus/internal/ready"
)

// sayAgain is after how long a kind that still can't be watched is told of again.
const sayAgain = 5 * time.Minute

// watches tells of kinds that the API server does not let us watch: a CRD that is not installed, a role that is missing. That the
// server can't be reached at all is reach's to tell.
type watches struct {
	log    *slog.Logger
	checks *ready.Checks
	now    func() time.Time

	mu   sync.Mutex
	all  bool              // guarded by mu: every kind has been read once
	said map[string]saying // guarded by mu; by resource
}

type saying struct {
	reason string
	at     time.Time
}

// failed is called with each end of a watch; it begins anew by itself, with a growing pause.
func (w *watches) failed(ctx context.Context, r *toolscache.Reflector, err error) {
	w.note(ctx, r.TypeDescription(), err)
}

func (w *watches) note(ctx context.Context, what string, err error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // it ended in the ordinary way
	}
	if d := status.Status().Details; d != nil {
		what = cmp.Or(d.Kind, what) // "serviceexports": of metadata alone, the Go type says nothing
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := w.said[what]; last.reason == err.Error() && w.now().Sub(last.at) < sayAgain {
		return
	}
	w.said[what] = saying{err.Error(), w.now()}
	w.log.WarnContext(ctx, "kind can't be watched; trying again", "resource", what, "error", err)
	if !w.all {
		w.checks.Waiting(checkKubernetes, what+" can't be read: "+err.Error())
	}
}

// unreachable says that not every kind has been read for want of an API server.
func (w *watches) unreachable(why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.all {
		w.checks.Waiting(checkKubernetes, "the API server can't be reached: "+why)
	}
}

// synced says that every kind has been read.
func (w *watches) synced() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = true
	w.checks.Done(checkKubernetes)
}
