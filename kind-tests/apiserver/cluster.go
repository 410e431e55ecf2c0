package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/kind-tests/child"
)

// Config is what a cluster is made of.
type Config struct {
	Binaries Binaries
	Name     string
	Dir      string // a folder of its own, which need not be there yet; it stays when the cluster ends
}

// Cluster is one that runs. Its methods may be used by several goroutines, but for KillServer, StartServer and Stop.
type Cluster struct {
	config Config
	dir    string // of the try that succeeded
	server string // host:port of the API server
	store  string // host:port of etcd
	token  string // of cluster-admin
	client *http.Client

	etcd, api, controllers *child.Process
}

const (
	// patience bounds the wait for one start. It is long because a machine may be busy; nothing depends on its length.
	patience = 2 * time.Minute
	// askFor bounds one question whether the server is ready: who has its port may never answer.
	askFor = time.Second
	// portTries is how often ports are chosen anew when somebody was faster.
	portTries = 5
)

// errPortTaken says that a start may be tried again.
var errPortTaken = errors.New("a port was taken by somebody else")

// Start starts a cluster and returns when its API server is ready.
func Start(ctx context.Context, config Config) (*Cluster, error) {
	var err error
	for try := range portTries {
		var addresses []string
		if addresses, err = child.Addresses(2); err != nil {
			break
		}
		var c *Cluster
		c, err = startAt(ctx, config, filepath.Join(config.Dir, fmt.Sprintf("try-%d", try)), addresses[0], addresses[1])
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return nil, fmt.Errorf("cluster %s: %w", config.Name, err)
}

// startAt starts a cluster on the given addresses; nothing of it runs when that fails.
func startAt(ctx context.Context, config Config, dir, server, store string) (*Cluster, error) {
	if err := config.Binaries.Check(); err != nil {
		return nil, err
	}
	c := &Cluster{config: config, dir: dir, server: server, store: store}
	err := c.start(ctx)
	if err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	if err = os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	if err = c.writeCredentials(); err != nil {
		return err
	}
	if c.etcd, err = c.run(etcd, c.etcdArgs()); err != nil {
		return err
	}
	if err = c.StartServer(ctx); err != nil {
		return err
	}
	c.controllers, err = c.run(controllerManager, c.controllerArgs())
	return err
}

// StartServer starts the API server, and returns when it is ready. It comes back to the address, the certificate and the objects
// that it had.
func (c *Cluster) StartServer(ctx context.Context) (err error) {
	if c.api, err = c.run(kubeAPIServer, c.serverArgs()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		last := c.ready(ctx)
		if last == nil {
			return nil
		}
		for _, p := range []*child.Process{c.etcd, c.api} {
			if ended := p.Err(); ended != nil {
				return classify(ended)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w; the end of %s:\n%s", last, c.log(kubeAPIServer), child.Tail(c.log(kubeAPIServer), 12))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// classify finds out whether a program ended for want of a port.
func classify(ended error) error {
	if strings.Contains(ended.Error(), "address already in use") {
		return fmt.Errorf("%w: %w", errPortTaken, ended)
	}
	return ended
}

// ready asks the API server whether it is. Who answers at that address with another certificate is not it.
func (c *Cluster) ready(ctx context.Context) error {
	if err := c.trustServer(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	_, err := c.Get(ctx, "/readyz")
	return err
}

// KillServer ends the API server at once. What it was told and has confirmed is in etcd, which goes on.
func (c *Cluster) KillServer() {
	c.api.Kill()
	c.client.CloseIdleConnections()
}

// Stop ends all of the cluster. Its files stay.
func (c *Cluster) Stop() {
	for _, p := range []*child.Process{c.controllers, c.api, c.etcd} {
		if p != nil {
			p.Kill() // what it has not written is of no use to anybody
		}
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.config.Name }

func (c *Cluster) run(program string, args []string) (*child.Process, error) {
	return child.Start(child.Config{Path: c.config.Binaries.path(program), Args: args, Dir: c.dir, Log: c.log(program)})
}

func (c *Cluster) log(program string) string { return filepath.Join(c.dir, program+".log") }
