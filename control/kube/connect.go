package kube

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
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

// reach knows whether the API server answers. It sees every request and every answer, those of the watches too, and tells of changes
// only: while the server is away, each watch tries again every few seconds.
type reach struct {
	log *slog.Logger
	now func() time.Time
	up  prometheus.Gauge

	mu   sync.Mutex
	lost time.Time // guarded by mu; zero: it answers
}

func newReach(cfg Config) (*reach, error) {
	r := &reach{log: cfg.Log, now: cfg.Now, up: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "isthmus_control_api_server_answers",
		Help: "Whether the Kubernetes API server answered last time (1) or could not be reached (0).",
	})}
	return r, cfg.Metrics.Register(r.up)
}

func (r *reach) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(request)
		switch {
		case err != nil && request.Context().Err() != nil: // we gave up, and that says nothing
		case err != nil:
			r.failed(err.Error())
		case response.StatusCode == http.StatusBadGateway || response.StatusCode == http.StatusServiceUnavailable ||
			response.StatusCode == http.StatusGatewayTimeout: // a load balancer answers for it
			r.failed(response.Status)
		default:
			r.answered()
		}
		return response, err
	})
}

func (r *reach) failed(why string) {
	r.up.Set(0)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost.IsZero() {
		r.lost = r.now()
		r.log.Warn("API server can't be reached; the last state stays in force", "error", why)
	}
}

func (r *reach) answered() {
	r.up.Set(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.lost.IsZero() {
		r.log.Info("API server answers again", "after", r.now().Sub(r.lost).Round(time.Second).String())
		r.lost = time.Time{}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip makes a request.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
