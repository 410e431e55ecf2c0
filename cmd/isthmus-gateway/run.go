package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/gateway"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

const program = "isthmus-gateway"

// flushGrace is how long the last spans may take on their way out.
const flushGrace = 2 * time.Second

func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned, help goes to standard output
	file := flags.String("config", "", "")
	showVersion := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
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
		Program: program, Name: c.ID, Version: version.String(), LogFormat: c.Log.Format, LogLevel: c.Log.Level, Stderr: stderr,
	})
	if err != nil {
		return &usageError{err}
	}
	err = serve(ctx, c, t)
	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushGrace)
	defer cancel()
	return errors.Join(err, t.Shutdown(flushing))
}

// serve runs the gateway until ctx ends and it has drained.
func serve(ctx context.Context, c *config, t *telemetry.Telemetry) error {
	streams, err := net.Listen("tcp", string(c.Listen.Streams))
	if err != nil {
		return fmt.Errorf("listen.streams: %w", err)
	}
	defer func() { _ = streams.Close() }()
	link, err := net.ListenPacket("udp", string(c.Listen.QUIC))
	if err != nil {
		return fmt.Errorf("listen.quic: %w", err)
	}
	defer func() { _ = link.Close() }()
	hello := &configv1.Hello{Program: "gateway", Version: version.String(), Gateway: &configv1.Gateway{Id: c.ID}}
	if hello.Gateway.Address, err = advertised("advertise.streams", c.Advertise.Streams, streams.Addr()); err != nil {
		return &usageError{err}
	}
	if hello.Gateway.QuicAddress, err = advertised("advertise.quic", c.Advertise.QUIC, link.LocalAddr()); err != nil {
		return &usageError{err}
	}
	tcp, err := listenTCP(c, streams.Addr(), link.LocalAddr())
	if err != nil {
		return err
	}
	if tcp.listener != nil {
		defer func() { _ = tcp.listener.Close() }()
	}
	if hello.Gateway.TcpAddress, err = tcp.advertised(c, hello.GetGateway().GetQuicAddress()); err != nil {
		return &usageError{err}
	}
	var admin net.Listener
	if c.Listen.Admin != "" {
		if admin, err = net.Listen("tcp", string(c.Listen.Admin)); err != nil {
			return fmt.Errorf("listen.admin: %w", err)
		}
		defer func() { _ = admin.Close() }()
		hello.AdminAddress = admin.Addr().String()
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
	g, err := gateway.New(gateway.Config{
		ID: c.ID, Identity: a.Identity, Bundles: a.Bundles, Guard: a.Guard, Snapshots: a.Stream.Snapshots(), Report: a.Stream.Report,
		Streams: streams, Link: link, LinkTCP: tcp.listener, LinkOnStreams: tcp.shared, DialPacket: func() (net.PacketConn, error) { return net.ListenPacket("udp", ":0") },
		Log: t.Log, Metrics: t.Metrics, Tracer: t.Tracer,
		ConnectionsPerPeer: c.ConnectionsPerPeer, ProbeInterval: c.probeInterval, DeadAfter: c.deadAfter, DrainGrace: c.drainGrace,
	})
	if err != nil {
		return err
	}
	checks := ready.New()
	a.Checks(checks)
	g.Checks(checks)
	t.Log.InfoContext(ctx, "starting", "version", version.String(), "streams", hello.GetGateway().GetAddress(),
		"quic", hello.GetGateway().GetQuicAddress(), "tcp", hello.GetGateway().GetTcpAddress(), "admin", hello.GetAdminAddress(), "control", string(c.Control))
	return together(ctx, g, a, admin, telemetry.Admin(t.Metrics, checks))
}

// together runs the gateway, and for as long as it runs, drain included, what it needs.
func together(ctx context.Context, g *gateway.Gateway, a *agent.Agent, admin net.Listener, handler http.Handler) error {
	gatewayCtx, stopGateway := context.WithCancel(ctx)
	defer stopGateway()
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
		stopGateway() // without an identity that is renewed there is no point in going on
	})
	if admin != nil {
		wg.Go(func() { failed(telemetry.ServeHTTP(restCtx, admin, handler)) })
	}
	failed(g.Run(gatewayCtx))
	stopRest()
	wg.Wait()
	return errors.Join(errs...)
}
