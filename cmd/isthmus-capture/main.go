// Command isthmus-capture makes the kernel bring connections to services of the mesh to the sidecar, and ends; or stays, and watches over it.
//
// It is run before the application is, in the same network namespace, with CAP_NET_ADMIN: in Kubernetes as an init container of the
// pod, or of the node proxy. The sidecar, which runs on, needs no such right. docs/reference/capture.md says more.
//
// Exit codes: 0 done, 1 it failed, 2 usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "isthmus-capture:", err)
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
	o, err := parse(args)
	switch {
	case err != nil:
		return err
	case o.help:
		_, err = io.WriteString(stdout, help)
		return err
	default:
		return o.do(ctx, stdout, stderr)
	}
}
