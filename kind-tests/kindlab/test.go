package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// test makes the clusters, unless they are there, and runs what tests them.
func (l *lab) test(ctx context.Context, flags []string) (err error) {
	wasUp := l.isUp()
	// What is built wants the network, which there is none of where the nodes are.
	if err = l.connect(ctx); err != nil {
		return err
	}
	if err = os.MkdirAll(l.file("bin"), 0o700); err != nil {
		return err
	}
	if !wasUp {
		defer func() { err = errors.Join(err, l.down()) }()
	}
	l.say("building the mesh's images and the tests")
	if err = through(ctx, l.repo, nil, "make", "--no-print-directory", "images", "ARGS="); err != nil { // ours are for the tests
		return err
	}
	if _, err = output(ctx, nil, "go", "-C", l.repo, "build", "-o", l.file("bin")+"/", "./cmd/isthmus"); err != nil {
		return err
	}
	tests := l.file("kind.test")
	if _, err = output(ctx, nil, "go", "-C", l.repo, "test", "-c", "-o", tests, "./kind-tests"); err != nil {
		return err
	}
	if err = l.up(ctx); err != nil {
		return err
	}
	if err = l.load(ctx, filepath.Join(l.repo, "bin", "images.tar")); err != nil {
		return err
	}
	l.say("testing")
	command := []string{tests, "-test.count=1", "-test.timeout=30m", "-test.run=^TestKind", "-test.parallel=8"}
	for _, f := range flags {
		name, found := strings.CutPrefix(f, "-")
		if found && !strings.HasPrefix(name, "test.") {
			f = "-test." + strings.TrimPrefix(name, "-")
		}
		command = append(command, f)
	}
	err = l.inside(ctx, filepath.Join(l.repo, "kind-tests"), []string{"ISTHMUS_KIND=" + l.run}, command...)
	l.say("done")
	return err
}
