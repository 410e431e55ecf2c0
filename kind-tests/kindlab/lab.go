package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// lab is what one user of a machine has: one daemon, one pair of clusters.
type lab struct {
	repo  string // the root of the checkout
	cache string // what takes long to build
	run   string // what lives as long as the clusters do: sockets, kubeconfigs, what is to be put back
	begun time.Time

	docker docker
}

func newLab() (*lab, error) {
	repo, err := filepath.Abs(".")
	if err != nil {
		return nil, err
	}
	if _, err = os.Stat(filepath.Join(repo, "kind-tests", "kindlab")); err != nil {
		return nil, fmt.Errorf("run it from the root of the repository: %w", err)
	}
	cache := os.Getenv("ISTHMUS_KUBE_CACHE")
	if cache == "" {
		cache = filepath.Join(repo, ".cache", "kube")
	}
	// A path of a socket is short: this one is not in the checkout.
	dir := "/run/isthmus-kind"
	if os.Getuid() != 0 {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("isthmus-kind-%d", os.Getuid()))
	}
	return &lab{repo: repo, cache: cache, run: dir, begun: time.Now()}, nil
}

// say tells whoever waits what is being waited for.
func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "kindlab: %3.0fs %s\n", time.Since(l.begun).Seconds(), fmt.Sprintf(format, args...))
}

// file is a path below the folder of what is running.
func (l *lab) file(name string) string { return filepath.Join(l.run, name) }

func (l *lab) kubeconfig() string { return l.file("kubeconfig") }

// output runs a program and returns what it printed; the error has what it complained of.
func output(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, tail(string(exit.Stderr)))
		}
		err = fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), err
}

// maxComplaint bounds what an error repeats of what a program printed.
const maxComplaint = 4 << 10

func tail(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxComplaint {
		s = "…" + s[len(s)-maxComplaint:]
	}
	return s
}

// through runs a program whose output is for whoever runs us.
func through(ctx context.Context, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return nil
}

// packages are those of Debian that hold the programs we run.
var packages = map[string]string{
	"docker": "docker.io", "dockerd": "docker.io", "containerd": "containerd", "runc": "runc",
	"mmdebstrap": "mmdebstrap", "ip": "iproute2", "iptables": "iptables", "nsenter": "util-linux", "busybox": "busybox-static",
}

// need reports the programs that are not there.
func need(programs ...string) error {
	var what, from []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			what, from = append(what, p), append(from, packages[p])
		}
	}
	if what == nil {
		return nil
	}
	return missingError{"missing: " + strings.Join(what, ", "), "apt-get install --no-install-recommends " + strings.Join(from, " ")}
}
