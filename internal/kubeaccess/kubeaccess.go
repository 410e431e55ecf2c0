// Package kubeaccess turns the contexts of a kubeconfig into clients, for the verbs of isthmus that speak with Kubernetes clusters.
//
// Files are found and merged as kubectl does it (--kubeconfig, then KUBECONFIG, then ~/.kube/config). Its errors say which file and
// which context were meant, and which contexts there are. It never falls back to a service account's token or to localhost: whoever
// names no cluster means none.
//
// A Source and a Cluster are values that are safe for concurrent use.
package kubeaccess

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/isthmus-mesh/isthmus/internal/version"
)

// The verbs of isthmus ask few things, but several at once; client-go's own limits (5 a second) would make them wait.
const (
	queriesPerSecond = 50
	queriesAtOnce    = 100
)

// ErrNoContext is what the error is (errors.Is) when a kubeconfig or a context was named that is not there.
var ErrNoContext = errors.New("no such context")

// Source is where contexts come from.
type Source struct {
	Kubeconfig string // the file; empty: KUBECONFIG, which may list several, or ~/.kube/config
}

// Contexts returns the names of the contexts that there are, sorted.
func (s Source) Contexts() ([]string, error) {
	raw, _, err := s.load()
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(raw.Contexts)), nil
}

// Clusters returns the cluster of each context in that order, or the errors of all that are none. No context: the current one.
func (s Source) Clusters(contexts ...string) ([]*Cluster, error) {
	if len(contexts) == 0 {
		contexts = []string{""}
	}
	var (
		out  []*Cluster
		errs []error
	)
	for _, name := range contexts {
		c, err := s.Cluster(name)
		if err == nil {
			out = append(out, c)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return out, nil
}

// Cluster returns the cluster of one context; empty: the current one. Nothing is dialled yet.
func (s Source) Cluster(context string) (*Cluster, error) {
	raw, files, err := s.load()
	if err != nil {
		return nil, err
	}
	name := cmp.Or(context, raw.CurrentContext)
	there := "there are: " + strings.Join(slices.Sorted(maps.Keys(raw.Contexts)), ", ")
	if len(raw.Contexts) == 0 {
		there = "there is none"
	}
	if name == "" {
		return nil, fmt.Errorf("%s: %w: it has no current context, name one with --context; %s", files, ErrNoContext, there)
	}
	if raw.Contexts[name] == nil {
		return nil, fmt.Errorf("%s: %w: %q; %s", files, ErrNoContext, name, there)
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*raw, name, &clientcmd.ConfigOverrides{}, s.rules()).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("%s: context %q: %w", files, name, err)
	}
	config.QPS, config.Burst = queriesPerSecond, queriesAtOnce
	config.UserAgent = "isthmus/" + version.String()
	config.WarningHandler = rest.NoWarnings{}
	return &Cluster{Context: name, Config: config}, nil
}

func (s Source) rules() *clientcmd.ClientConfigLoadingRules {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = s.Kubeconfig
	rules.Warner = func(error) {} // missing files are an error of ours, not a line of klog
	return rules
}

// load returns what the files hold together, and their names as errors say them.
func (s Source) load() (*clientcmdapi.Config, string, error) {
	rules := s.rules()
	paths := rules.GetLoadingPrecedence()
	if s.Kubeconfig != "" {
		paths = []string{s.Kubeconfig}
	}
	there := slices.DeleteFunc(slices.Clone(paths), func(p string) bool {
		_, err := os.Stat(p)
		return errors.Is(err, os.ErrNotExist)
	})
	if len(there) == 0 {
		hint := "name one with --kubeconfig or KUBECONFIG"
		switch {
		case s.Kubeconfig != "":
			hint = "--kubeconfig names it"
		case os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != "":
			hint = "KUBECONFIG names it"
		}
		return nil, "", fmt.Errorf("no kubeconfig at %s: %w (%s)", strings.Join(paths, ", "), ErrNoContext, hint)
	}
	files := "kubeconfig " + strings.Join(there, ", ")
	raw, err := rules.Load()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", files, err)
	}
	return raw, files, nil
}

// Cluster is a cluster that a context names.
type Cluster struct {
	Context string
	Config  *rest.Config

	once   sync.Once
	client *http.Client
	err    error
}

// shared returns the connections that all clients of the Cluster use.
func (c *Cluster) shared() (*http.Client, error) {
	c.once.Do(func() { c.client, c.err = rest.HTTPClientFor(c.Config) })
	if c.err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, c.err)
	}
	return c.client, nil
}

// Clientset returns a client of the kinds that Kubernetes has.
func (c *Cluster) Clientset() (kubernetes.Interface, error) {
	client, err := c.shared()
	if err != nil {
		return nil, err
	}
	set, err := kubernetes.NewForConfigAndClient(c.Config, client)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, err)
	}
	return set, nil
}

// Dynamic returns a client of any kind.
func (c *Cluster) Dynamic() (dynamic.Interface, error) {
	client, err := c.shared()
	if err != nil {
		return nil, err
	}
	d, err := dynamic.NewForConfigAndClient(c.Config, client)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, err)
	}
	return d, nil
}
