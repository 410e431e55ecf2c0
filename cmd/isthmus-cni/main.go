// Command isthmus-cni has the nodes capture the connections of Pods with a sidecar, so that these need no right to do it themselves.
//
// It is a CNI plugin (CNI specification 1.0), chained behind those that make a Pod's network: the container runtime runs it, with what it is
// to do in its environment and on standard input. What to capture is said by an annotation that the injection puts on Pods, and the runtime
// hands it over; it asks no API server. Run with --install, it puts itself into a node's plugin folder and configuration, and stays to keep
// it there. docs/injection.md says more.
//
// Exit codes: 0 done, 1 failed, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/isthmus-mesh/isthmus/internal/version"
	"github.com/isthmus-mesh/isthmus/sidecar/capture"
)

const help = `isthmus-cni has the nodes capture the connections of Pods with a sidecar.

Usage:
  isthmus-cni                             As a CNI plugin: the container runtime runs it.
  isthmus-cni --install [--stay] | --remove [--stay]   [--bin-dir DIR] [--conf-dir DIR]
  isthmus-cni --help | --version

  --install               Copies itself into the plugin folder, and adds itself to the node's network
                          configuration: the first *.conflist of that folder.
  --remove                Takes itself out of both.
  --stay                  Doesn't end: looks every few seconds whether all is still so, until SIGTERM or SIGINT,
                          which change nothing.
  --bin-dir DIR           The node's plugin folder. Default /host/opt/cni/bin.
  --conf-dir DIR          The node's network configurations. Default /host/etc/cni/net.d.

Exit codes: 0 done, 1 failed, 2 usage.
`

func main() {
	if command := os.Getenv("CNI_COMMAND"); command != "" {
		p := plugin{env: os.Getenv, install: capture.InstallIn}
		os.Exit(p.run(command, os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "isthmus-cni:", err)
	}
	os.Exit(exitCode(err))
}

// usageError is a mistake in how the program was called.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() + " (--help says more)" }
func (e *usageError) Unwrap() error { return e.err }

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return 2
	}
	return 1
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	n := node{log: slog.New(slog.NewTextHandler(stderr, nil))}
	var install, remove, stay, showVersion bool
	flags := flag.NewFlagSet("isthmus-cni", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned, help goes to standard output
	flags.BoolVar(&install, "install", false, "")
	flags.BoolVar(&remove, "remove", false, "")
	flags.BoolVar(&stay, "stay", false, "")
	flags.BoolVar(&showVersion, "version", false, "")
	flags.StringVar(&n.bin, "bin-dir", "/host/opt/cni/bin", "")
	flags.StringVar(&n.conf, "conf-dir", "/host/etc/cni/net.d", "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, err = io.WriteString(stdout, help)
		return err
	case err != nil:
		return &usageError{err}
	case flags.NArg() > 0:
		return &usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	case showVersion:
		_, err = fmt.Fprintln(stdout, "isthmus-cni", version.Long())
		return err
	case install == remove:
		return &usageError{errors.New("say --install or --remove")}
	}
	n.remove = remove
	if stay {
		return n.stay(ctx)
	}
	_, err := n.settle()
	return err
}
