package kube

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
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

func newWatches(cfg Config) *watches {
	return &watches{log: cfg.Log, checks: cfg.Checks, now: cfg.Now, said: make(map[string]saying)}
}

// refused is told of each answer to a list or watch, and reports whether to ask again instead of taking it for one: before every kind was
// read once, what is missing is waited for. Later on, a kind that is gone is none that was never there.
func (w *watches) refused(resource string, code int) bool {
	why := ""
	switch code {
	case http.StatusNotFound:
		why = "there is no such resource: install its CRD"
	case http.StatusForbidden:
		why = "it is forbidden: give control the role of deploy/rbac/control.yaml"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all || why == "" {
		return false
	}
	w.say(resource, why)
	return true
}

// failed is called with each end of a watch; it begins anew by itself, with a growing pause.
func (w *watches) failed(_ context.Context, r *toolscache.Reflector, err error) {
	w.ended(r.TypeDescription(), err)
}

func (w *watches) ended(what string, err error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return // in the ordinary way
	}
	if d := status.Status().Details; d != nil {
		what = cmp.Or(d.Kind, what) // "serviceexports": of metadata alone, the Go type says nothing
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say(what, err.Error())
}

// say tells why a resource can't be read, once in a while. The caller holds mu.
func (w *watches) say(resource, why string) {
	if last := w.said[resource]; last.reason == why && w.now().Sub(last.at) < sayAgain {
		return
	}
	w.said[resource] = saying{why, w.now()}
	w.log.Warn("resource can't be read; trying again", "resource", resource, "error", why)
	if !w.all {
		w.checks.Waiting(checkKubernetes, resource+" can't be read: "+why)
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
