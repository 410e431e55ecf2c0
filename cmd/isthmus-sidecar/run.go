package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/internal/version"
	"github.com/isthmus-mesh/isthmus/sidecar"
	"github.com/isthmus-mesh/isthmus/trust/workload"
)

const program = "isthmus-sidecar"

// flushGrace is how long the last spans may take on their way out.
const flushGrace = 2 * time.Second

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
		_, err = fmt.Fprintln(stdout, program, version.Long())
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
		Program: program, Name: c.Workload + c.Node, Version: version.String(), LogFormat: c.Log.Format, LogLevel: c.Log.Level, Stderr: stderr,
	})
	if err != nil {
		return &usageError{err}
	}
	err = serve(ctx, c, t)
	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushGrace)
	defer cancel()
	return errors.Join(err, t.Shutdown(flushing))
}

// serve runs the sidecar until ctx ends and it has drained.
func serve(ctx context.Context, c *config, t *telemetry.Telemetry) error {
	l, err := listen(c)
	defer l.close()
	if err != nil {
		return err
	}
	l.warn(ctx, t.Log)
	hello := &configv1.Hello{Program: "sidecar", Version: version.String(), Workload: c.Workload}
	if c.Node != "" {
		hello.Program, hello.Workload = "node", c.Node
		if hello.InboundAddress, err = advertised(c.Advertise.Inbound, l.inbound.Addr()); err != nil {
			return &usageError{err}
		}
	}
	if l.admin != nil {
		hello.AdminAddress = l.admin.Addr().String()
	}
	a, err := agent.New(agent.Config{
		Control: string(c.Control), TrustDomain: c.domain, StateDir: c.State,
		JoinTokenFile: c.JoinTokenFile, TrustBundleFile: c.TrustBundleFile, WorkloadAPI: c.Identity.WorkloadAPI, Hello: hello, Log: t.Log,
	})
	if err != nil {
		return err
	}
	if err = t.Metrics.Register(telemetry.Expiries(time.Now, a.Expiries)); err != nil {
		return err
	}
	s, err := sidecar.New(sidecar.Config{
		Identity: a.Identity, Bundles: a.Bundles, Guard: a.Guard, Snapshots: a.Stream.Snapshots(), Subscribe: a.Stream.Subscribe,
		Inbound: l.inbound, Proxy: l.proxy, Listeners: l.services, UDP: l.datagrams, DNS: l.dnsPackets, DNSStream: l.dnsStream,
		Captured: l.captured, Resolve: a.Stream.Resolve, PassThrough: c.Workload != "", CaptureFile: c.CaptureFile,
		Lease: a.Stream.Lease, KeysDir: c.JWKS.Directory,
		Log: t.Log, RequestLevel: c.requests, Metrics: t.Metrics, Tracer: t.Tracer, Propagator: t.Propagator, DrainGrace: c.drainGrace,
	})
	if err != nil {
		return err
	}
	a.Stream.Account(s.Account)
	checks := ready.New()
	a.Checks(checks)
	s.Checks(checks)
	admin := telemetry.Admin(t.Metrics, checks)
	admin.Handle("GET /explain", explain(s))
	admin.Handle("GET /decisions", decisions(s))
	t.Log.InfoContext(ctx, "starting", "version", version.String(), "listen", l.String(), "control", string(c.Control))
	rest := []func(context.Context) error{}
	if l.admin != nil {
		rest = append(rest, func(ctx context.Context) error { return telemetry.ServeHTTP(ctx, l.admin, admin) })
	}
	if l.workloadAPI != nil {
		w, err := c.workloadServer(a, t)
		if err != nil {
			return err
		}
		rest = append(rest, func(ctx context.Context) error { return w.Serve(ctx, l.workloadAPI) })
	}
	return together(ctx, s, a, rest)
}

// workloadServer hands the sidecar's own identity to its workload.
func (c *config) workloadServer(a *agent.Agent, t *telemetry.Telemetry) (*workload.Server, error) {
	own := &workload.Own{
		Identity: a.Identity, UIDs: append([]uint32{uint32(os.Geteuid())}, c.WorkloadAPI.UIDs...), AnyUID: c.WorkloadAPI.AnyUID, //nolint:gosec // G115: a uid has 32 bits
		Sign: a.SignJWT,
	}
	return workload.NewServer(workload.Config{Source: own, Bundles: a.Bundles, Log: t.Log})
}

// explain answers GET /explain?to=NAME[&port=N][&down=PLACE]….
func explain(s *sidecar.Sidecar) http.Handler {
	return near(func(w http.ResponseWriter, r *http.Request) {
		q, err := sidecar.ParseQuery(r.URL.Query().Get("to"), r.URL.Query().Get("port"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		x, err := s.ExplainAsIf(r.Context(), q, r.URL.Query()["down"])
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(x) // the client went away
	})
}

// decisions answers GET /decisions.
func decisions(s *sidecar.Sidecar) http.Handler {
	return near(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Decisions()) // the client went away
	})
}

// near answers who asks from where the sidecar runs.
func near(answer http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isAddress(r.Host) { // a page in a browser on this machine could have a name of its own resolve to it
			http.Error(w, "ask by address: the Host header must be an IP address or localhost", http.StatusForbidden)
			return
		}
		if !isNear(r) { // where the listener is for probes and scrapers too, not all who reach it need to know where calls go, and who calls
			http.Error(w, "ask from where the sidecar runs: in a Pod, kubectl port-forward or exec", http.StatusForbidden)
			return
		}
		answer(w, r)
	})
}

// isAddress reports whether a Host header names a machine by its address, with or without a port.
func isAddress(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || host == "localhost"
}

// isNear reports whether a request comes from the machine, or network namespace, that it came to.
func isNear(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	to, err := netip.ParseAddrPort(local.String())
	return err == nil && (from.Addr().Unmap().IsLoopback() || from.Addr().Unmap() == to.Addr().Unmap())
}

// together runs the sidecar, and for as long as it runs, drain included, the agent that it needs and the rest.
func together(ctx context.Context, s *sidecar.Sidecar, a *agent.Agent, rest []func(context.Context) error) error {
	sidecarCtx, stopSidecar := context.WithCancel(ctx)
	defer stopSidecar()
	restCtx, stopRest := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRest()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error // guarded by mu
	)
	failed := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	wg.Go(func() {
		failed(a.Run(restCtx))
		stopSidecar() // without an identity that is renewed there is no point in going on
	})
	for _, serve := range rest {
		wg.Go(func() { failed(serve(restCtx)) })
	}
	failed(s.Run(sidecarCtx))
	stopRest()
	wg.Wait()
	return errors.Join(errs...)
}
