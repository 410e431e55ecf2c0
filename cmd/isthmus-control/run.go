package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/folder"
	"github.com/isthmus-mesh/isthmus/control/kube"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/internal/unixsocket"
	"github.com/isthmus-mesh/isthmus/internal/version"
	"github.com/isthmus-mesh/isthmus/trust"
)

const program = "isthmus-control"

// flushGrace is how long the last spans may take on their way out.
const flushGrace = 2 * time.Second

// manifestState is where the folder keeps what it must not forget, in the state directory.
const manifestState = "manifests"

func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned, help goes to standard output
	file := flags.String("config", "", "")
	showVersion := flags.Bool("version", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err = io.WriteString(stdout, help)
		return err
	case err != nil:
		return &usageError{fmt.Errorf("%w (--help says more)", err)}
	case *showVersion:
		_, err := fmt.Fprintln(stdout, program, version.Long())
		return err
	case flags.NArg() > 0:
		return &usageError{fmt.Errorf("unexpected argument %q (--help says more)", flags.Arg(0))}
	case *file == "":
		return &usageError{errors.New("--config FILE is missing (--help says more)")}
	}
	c, err := readConfig(*file)
	if err != nil {
		return &usageError{err}
	}
	t, err := telemetry.New(ctx, telemetry.Config{
		Program: program, Cluster: c.Cluster, Name: "control", Version: version.String(),
		LogFormat: c.Log.Format, LogLevel: c.Log.Level, Stderr: stderr,
	})
	if err != nil {
		return &usageError{err}
	}
	err = serve(ctx, c, t)
	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushGrace)
	defer cancel()
	return errors.Join(err, t.Shutdown(flushing))
}

// serve runs the control plane until ctx ends.
func serve(ctx context.Context, c *config, t *telemetry.Telemetry) error {
	unlock, err := lock(c.State)
	if err != nil {
		return err
	}
	defer unlock()
	checks := ready.New()
	registry, err := openRegistry(c, checks, t)
	if err != nil {
		return err
	}
	state, err := restore(ctx, c, registry)
	if err != nil {
		return err
	}
	l, err := listen(c)
	if err != nil {
		return err
	}
	defer l.close()
	webhook, err := injector(c, l.webhook, t.Log)
	if err != nil {
		return err
	}
	endpoint, err := c.endpoint(l.endpoint, t.Log)
	if err != nil {
		return err
	}
	attestor, _ := registry.(control.Attestor) // a folder vouches for nobody
	var files *control.UpstreamFiles
	if f := c.Authority.Files; f != nil {
		files = &control.UpstreamFiles{Certificate: f.Certificate, Key: f.Key, Bundle: f.Bundle}
	}
	plane, err := control.New(control.Config{
		Upstream: files, UpstreamAPI: c.Authority.WorkloadAPI,
		Cluster: c.cluster, Domain: c.domain, Region: c.Region, Zone: c.Zone,
		StateDir: c.State, Registry: registry, Courier: &courier{listen: string(c.Bus.Listen), log: t.Log}, BusURLs: c.Bus.Advertise, Attestor: attestor,
		ClusterSetCIDR: c.cidr, PodCIDRs: c.pods, PeerPodCIDRs: c.peers, NodeProxies: c.NodeProxies,
		GRPC: l.grpc, Socket: l.socket, Admin: l.admin, Webhook: webhook, WorkloadAPI: l.workloadAPI, FederationEndpoint: endpoint,
		Checks: checks, Metrics: t.Metrics, Log: t.Log, Version: version.String(),
	})
	if err != nil {
		return err
	}
	t.Log.InfoContext(ctx, "starting", "version", version.String(), "grpc", l.grpc.Addr().String(), "bus", string(c.Bus.Listen),
		"socket", c.Admin.Socket, "admin", string(c.Admin.Listen), "manifests", c.Manifests, "kubernetes", c.Kubernetes != nil)
	if err = state.Keep(ctx, true); err != nil { // before anybody is told of the keys
		return err
	}
	return together(ctx, plane, registry, state)
}

// endpoint returns how the own trust bundle is served; nil: it is not.
func (c *config) endpoint(l net.Listener, log *slog.Logger) (*control.FederationEndpoint, error) {
	e := c.FederationEndpoint
	if e == nil {
		return nil, nil //nolint:nilnil // control takes nil for none
	}
	out := &control.FederationEndpoint{Listener: l}
	if e.Certificate != "" {
		var err error
		if out.Web, err = trust.OpenWebFiles(e.Certificate, e.Key, nil, log); err != nil {
			return nil, fmt.Errorf("federationEndpoint: %w", err)
		}
	}
	return out, nil
}

// keeper keeps the state directory somewhere else too.
type keeper interface {
	Keep(ctx context.Context, all bool) error
	Run(ctx context.Context) error
}

// restore fills an empty state directory where the configuration says from what, and returns what keeps it.
func restore(ctx context.Context, c *config, registry registry) (keeper, error) {
	cluster, ok := registry.(*kube.Kube)
	if !ok || c.Kubernetes.StateSecret == "" {
		return onDisk{}, nil
	}
	return cluster.RestoreState(ctx, kube.StateConfig{
		Dir: c.State, Secret: c.Kubernetes.StateSecret, Keys: control.Keys, Fast: control.Facts, Slow: control.Memory,
		ConfigMap: c.Kubernetes.TrustBundle, Public: control.TrustBundleFile,
	})
}

// onDisk is a state directory that needs no keeping.
type onDisk struct{}

// Keep does nothing.
func (onDisk) Keep(context.Context, bool) error { return nil }

// Run waits for the end.
func (onDisk) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// registry is where the cluster's objects are declared, and what keeps up with it.
type registry interface {
	control.Registry
	Run(ctx context.Context) error
}

// openRegistry makes the one that the configuration names.
func openRegistry(c *config, checks *ready.Checks, t *telemetry.Telemetry) (registry, error) {
	if k := c.Kubernetes; k != nil {
		id, err := trust.ControlID(c.domain)
		if err != nil {
			return nil, err
		}
		cfg := kube.Config{
			Kubeconfig: k.Kubeconfig, Context: k.Context, Audience: id.String(), Checks: checks, Metrics: t.Metrics, Log: t.Log,
		}
		if k.Injection != nil {
			cfg.Webhook, cfg.Roots = k.Injection.Webhook, c.roots
		}
		return kube.New(cfg)
	}
	return folder.New(folder.Config{Dir: c.Manifests, StateDir: filepath.Join(c.State, manifestState), Log: t.Log})
}

// together runs the control plane, the registry that it reads, and what keeps its state: the latter for longer, so that it has the last word.
func together(ctx context.Context, plane *control.Control, registry registry, state keeper) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keeping, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var registering, kept sync.WaitGroup
	var fromRegistry, fromState error
	registering.Go(func() {
		defer cancel()
		fromRegistry = registry.Run(ctx)
	})
	kept.Go(func() {
		defer cancel()
		fromState = state.Run(keeping)
	})
	err := plane.Run(ctx)
	cancel()
	registering.Wait()
	end()
	kept.Wait()
	return errors.Join(err, fromRegistry, fromState)
}

// listeners are all that control accepts on, but for the bus, which listens for itself.
type listeners struct {
	grpc, socket, admin, webhook, workloadAPI, endpoint net.Listener
}

// listenSocket listens on a Unix socket. A path that can't be one is a mistake in the configuration.
func listenSocket(path string, mode fs.FileMode) (net.Listener, error) {
	l, err := unixsocket.Listen(path, mode)
	if errors.Is(err, unixsocket.ErrPath) {
		return nil, &usageError{err}
	}
	return l, err
}

func listen(c *config) (l listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.grpc, err = net.Listen("tcp", string(c.Listen)); err != nil {
		return l, fmt.Errorf("listen: %w", err)
	}
	if l.socket, err = listenSocket(c.Admin.Socket, 0o600); err != nil {
		return l, fmt.Errorf("admin.socket: %w", err)
	}
	if path := c.WorkloadAPI.Socket; path != "" {
		// Everybody may connect: who it is, is looked at then.
		if l.workloadAPI, err = listenSocket(path, 0o666); err != nil {
			return l, fmt.Errorf("workloadAPI.socket: %w", err)
		}
	}
	if e := c.FederationEndpoint; e != nil {
		if l.endpoint, err = net.Listen("tcp", string(e.Listen)); err != nil {
			return l, fmt.Errorf("federationEndpoint.listen: %w", err)
		}
	}
	if k := c.Kubernetes; k != nil && k.Injection != nil {
		if l.webhook, err = net.Listen("tcp", string(k.Injection.Listen)); err != nil {
			return l, fmt.Errorf("kubernetes.injection.listen: %w", err)
		}
	}
	if c.Admin.Listen == "" {
		return l, nil
	}
	if l.admin, err = net.Listen("tcp", string(c.Admin.Listen)); err != nil {
		return l, fmt.Errorf("admin.listen: %w", err)
	}
	return l, nil
}

// close closes what is open. What control has closed itself stays so.
func (l listeners) close() {
	for _, ln := range []net.Listener{l.grpc, l.socket, l.admin, l.webhook, l.workloadAPI, l.endpoint} {
		if ln != nil {
			_ = ln.Close()
		}
	}
}
