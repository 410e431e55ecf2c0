// Wanbench measures what the gateways cost, and gain, on the way between two clusters: client → gateway → WAN → gateway → server, beside other
// ways across the same WAN, in one run. "make bench-gateway" runs it; it needs root, Linux and the command ip, and haproxy for one of the others.
//
//	direct   TCP from client to server: what the WAN itself allows; encrypts nothing
//	haproxy  a pair of haproxies, mutual TLS over TCP between them, a connection for each of the client's
//	h2       a pair of Go proxies, one HTTP/2 connection with mutual TLS between them for all
//	isthmus  our gateways, QUIC with mutual TLS between them
//
// What the client does, by turns: requests (128 bytes for 1 KiB) on 64 connections that are kept; a new connection for each request, 32 at a time; and
// one download, as fast as it goes. Figures are of this machine and this run: compare within a line. "-markdown docs/benchmarks.md" puts them into that
// page, between its two marks.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/netns"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, netns.ErrUnavailable) && os.Getenv("CI") == "":
		fmt.Fprintln(os.Stderr, "SKIP: wanbench:", err)
	case err != nil:
		fmt.Fprintln(os.Stderr, "wanbench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rtts     []time.Duration
	losses   []float64
	ways     []string
	loads    []string
	each     time.Duration
	cold     bool
	binaries string
	report   string
	markdown string

	congestion string
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("wanbench", flag.ContinueOnError)
	rtts := flags.String("rtt", "0,20,80", "round trips, in ms")
	losses := flags.String("loss", "0,0.1,1,3", "losses, in percent, each way")
	ways := flags.String("ways", "direct,haproxy,h2,isthmus", "what is measured")
	loads := flags.String("loads", "kept,new,bulk", "what the client does")
	flags.DurationVar(&o.each, "each", 2600*time.Millisecond, "how long each measurement takes")
	flags.BoolVar(&o.cold, "cold", false, "nothing is done before it is measured: one load on one link, as it meets a service that nobody has called")
	flags.StringVar(&o.binaries, "binaries", "bin", "folder of the programs")
	flags.StringVar(&o.report, "report", "", "file for the figures, as JSON")
	flags.StringVar(&o.congestion, "congestion", "", "TCP's congestion control on every host, such as cubic; the default is the kernel's")
	flags.StringVar(&o.markdown, "markdown", "", "page that the figures are put into, or made of")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for s := range strings.SplitSeq(*rtts, ",") {
		ms, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return o, fmt.Errorf("-rtt %q: %w", s, err)
		}
		o.rtts = append(o.rtts, time.Duration(ms*float64(time.Millisecond)))
	}
	for s := range strings.SplitSeq(*losses, ",") {
		percent, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return o, fmt.Errorf("-loss %q: %w", s, err)
		}
		o.losses = append(o.losses, percent/100)
	}
	o.ways, o.loads = strings.Split(*ways, ","), strings.Split(*loads, ",")
	binaries, err := filepath.Abs(o.binaries)
	o.binaries = binaries
	return o, err
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return child(ctx, args)
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err = netns.Available(); err != nil {
		return err
	}
	s, err := newStage(ctx, o)
	if err != nil {
		return err
	}
	defer s.close()
	figures, err := s.measure(ctx, os.Stdout)
	if o.report != "" && len(figures) > 0 {
		b, e := json.MarshalIndent(figures, "", "  ")
		if e == nil {
			e = os.WriteFile(o.report, append(b, '\n'), 0o644)
		}
		err = errors.Join(err, e)
	}
	if o.markdown != "" && err == nil {
		err = putInto(o.markdown, summary(figures, o))
	}
	return err
}
