package kube

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/isthmus-mesh/isthmus/internal/version"
)

// routeLogs sends what the Kubernetes libraries log to a log of ours. They have one in a process.
func routeLogs(to *slog.Logger) {
	to = to.With("from", "kubernetes client")
	klog.SetSlogLogger(to)
	ctrllog.SetLogger(logr.FromSlogHandler(to.Handler()))
}

// restConfig says where the API server is and who we are to it.
func restConfig(cfg Config) (*rest.Config, error) {
	var (
		api *rest.Config
		err error
	)
	if cfg.Kubeconfig == "" {
		if api, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("credentials of the pod: %w (outside of a cluster, name a kubeconfig)", err)
		}
	} else {
		api, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig},
			&clientcmd.ConfigOverrides{CurrentContext: cfg.Context},
		).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", cfg.Kubeconfig, err)
		}
	}
	api.UserAgent = "isthmus-control/" + version.String()
	api.QPS, api.Burst = clientQPS, clientBurst
	return api, nil
}

const (
	// namespaceFile is where the kubelet says in which namespace a Pod is.
	namespaceFile    = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
	defaultNamespace = "isthmus-system"
)

func podNamespace() string {
	b, err := os.ReadFile(namespaceFile)
	if name := strings.TrimSpace(string(b)); err == nil && name != "" {
		return name
	}
	return defaultNamespace
}

// retryReads is how long a read waits for an API server that is away, or for a CRD or a role that is missing at the start, between one
// try and the next. It is short because nothing else happens then, and because the informers' own pauses grow to a minute, which a
// cluster would be behind once the server is back.
const retryReads = time.Second

// reach knows whether the API server answers. It sees every request and every answer, those of the watches too, and tells of changes
// only. While the server is away it holds on to the reads: a list or watch fails only by an answer.
type reach struct {
	log     *slog.Logger
	now     func() time.Time
	up      prometheus.Gauge
	watches *watches // are told when it is lost, and may hold on to reads that are refused
	every   time.Duration

	mu   sync.Mutex
	lost time.Time // guarded by mu; zero: it answers
	last time.Time // guarded by mu: of the last answer
}

func newReach(cfg Config, w *watches) (*reach, error) {
	r := &reach{log: cfg.Log, now: cfg.Now, watches: w, every: retryReads, up: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "isthmus_control_api_server_answers",
		Help: "Whether the Kubernetes API server answered last time (1) or could not be reached (0).",
	})}
	return r, cfg.Metrics.Register(r.up)
}

func (r *reach) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		for {
			began := r.now()
			response, err := next.RoundTrip(request)
			if request.Context().Err() != nil { // we gave up, and that says nothing
				return response, err
			}
			hold := request.Method == http.MethodGet
			if why := absence(response, err); why != "" {
				r.failed(why, began)
			} else {
				r.answered()
				hold = hold && isOfKind(request.URL.Path) && r.watches.refused(path.Base(request.URL.Path), response.StatusCode)
			}
			if !hold || !pause(request.Context(), r.every) {
				return response, err
			}
			if response != nil {
				_ = response.Body.Close()
			}
		}
	})
}

// isOfKind reports whether a path is that of a whole kind, as it is listed and watched here, and not of one object: that one isn't there
// is an answer.
func isOfKind(path string) bool { return !strings.Contains(path, "/namespaces/") }

// absence says why an answer is none of the API server's; "" if it is. A load balancer may answer in its place.
func absence(response *http.Response, err error) string {
	if err != nil {
		return err.Error()
	}
	switch response.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return response.Status
	}
	return ""
}

// failed is told of a request that was not answered. One that began before the last answer says nothing of now.
func (r *reach) failed(why string, began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if began.Before(r.last) {
		return
	}
	r.up.Set(0)
	if r.lost.IsZero() {
		r.lost = r.now()
		r.log.Warn("API server can't be reached; the last state stays in force", "error", why)
		r.watches.unreachable(why)
	}
}

func (r *reach) answered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up.Set(1)
	r.last = r.now()
	if !r.lost.IsZero() {
		r.log.Info("API server answers again", "after", r.now().Sub(r.lost).Round(time.Second).String())
		r.lost = time.Time{}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip makes a request.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
