package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// binaries are folders that kind-tests/kubernetes/build has made.
type binaries struct{ api, node string }

// release is that of Kubernetes; the folders are called by it.
func (b binaries) release() string {
	release, _, _ := strings.Cut(filepath.Base(b.api), "-")
	return release
}

// binaries builds what is not there yet.
func (l *lab) binaries(ctx context.Context) (b binaries, err error) {
	if b.api, err = l.build(ctx); err != nil {
		return b, err
	}
	b.node, err = l.build(ctx, "node")
	return b, err
}

func (l *lab) build(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(l.repo, "kind-tests", "kubernetes", "build"), args...)
	cmd.Env = append(os.Environ(), "ISTHMUS_KUBE_CACHE="+l.cache)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kind-tests/kubernetes/build %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out.String()), nil
}

func (l *lab) kindModule() string { return filepath.Join(l.repo, "kind-tests", "kubernetes", "kind") }

// kind builds kind, at the version of its module; once it is in Go's cache that takes a second.
func (l *lab) kind(ctx context.Context) (string, error) {
	to := l.file("kind")
	_, err := output(ctx, []string{"CGO_ENABLED=0"}, "go", "-C", l.kindModule(), "build", "-trimpath", "-buildvcs=false", "-o", to, "sigs.k8s.io/kind")
	return to, err
}

// ownPrograms builds static programs that stand in folders below this one.
func (l *lab) ownPrograms(ctx context.Context, names ...string) (map[string]string, error) {
	if err := os.MkdirAll(l.file("bin"), 0o700); err != nil {
		return nil, err
	}
	args := []string{"-C", l.repo, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", l.file("bin") + "/"}
	out := map[string]string{}
	for _, name := range names {
		args = append(args, "./kind-tests/kindlab/"+name)
		out[name] = l.file("bin/" + name)
	}
	_, err := output(ctx, []string{"CGO_ENABLED=0", "GOOS=linux"}, "go", args...)
	return out, err
}
