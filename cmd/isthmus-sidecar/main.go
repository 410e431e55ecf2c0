// Command isthmus-sidecar carries one workload's calls, in and out; or, with node: in its configuration, it stands in for
// workloads that have no sidecar of their own.
//
// It reads one YAML file (--config; --help documents each key), joins its trust domain with a single-use token, follows the
// configuration that control sends, and lets requests end when it is asked to stop. docs/reference/sidecar.md says more.
//
// Exit codes: 0 it was asked to stop and has drained, 1 it failed, 2 usage or configuration.
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
		_, _ = fmt.Fprintln(os.Stderr, "isthmus-sidecar:", err)
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
