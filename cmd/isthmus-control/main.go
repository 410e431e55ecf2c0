// Command isthmus-control is the control plane of one cluster of a mesh.
//
// It reads one YAML file (--config; --help documents each key), follows a folder of manifests or a Kubernetes API server, gives the
// cluster's gateways and sidecars their identity and their configuration, and tells other clusters what this one exports. docs/reference/control.md says more.
//
// Exit codes: 0 it was asked to stop, 1 it failed, 2 usage or configuration.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "isthmus-control:", err)
	}
	os.Exit(exitCode(err))
}

// usageError is a mistake in how the program was called or configured.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
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
