// Command isthmus is what a person holds of the mesh: what stands, why a call goes where it goes, and a playground.
//
// Results go to standard output, chatter to standard error. Exit codes: 0 ok, 1 a finding, 2 usage, 3 unreachable,
// 4 time-out. docs/reference/cli.md describes every verb.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), endingSignals()...)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if line := complaint(err); line != "" {
		_, _ = fmt.Fprintln(os.Stderr, line)
	}
	os.Exit(exitCode(err))
}

// endingSignals are those at which a verb ends what it began. One whose terminal goes away cleans up too, unless nohup said that
// it should stay.
func endingSignals() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

// isPlugin reports whether kubectl runs this program: it finds plugins by their name.
func isPlugin(program string) bool {
	return strings.TrimSuffix(filepath.Base(program), ".exe") == "kubectl-isthmus"
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	g := &global{plugin: isPlugin(os.Args[0])}
	defer g.close()
	root := newRoot(g, stdin, stdout, stderr)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}
