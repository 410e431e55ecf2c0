// Kindlab makes two Kubernetes clusters by kind, with nodes and pods, where there may be neither a registry of images nor a Docker daemon, and
// runs a program where they can be reached. It is a tool of the tests: "make kind-test" runs it.
//
//	kindlab image             builds the image that nodes run, unless it is there
//	kindlab up                makes the clusters and leaves them, to be tried by hand
//	kindlab exec COMMAND...   runs a command where the clusters can be reached, with KUBECONFIG and DOCKER_HOST set
//	kindlab load FILE...      gives images (docker save) to the nodes
//	kindlab down              removes all that up has made
//	kindlab test [FLAGS...]   makes the clusters, runs the tests of kind-tests on them, with these flags, and removes them
//
// The environment:
//
//	DOCKER_HOST          the Docker daemon; without it the usual one, and where that does not answer, one of our own (root, Linux)
//	ISTHMUS_KIND_IMAGE   an image for nodes that is there or can be pulled, such as kindest/node:v1.34.4; without it we build one
//	ISTHMUS_KUBE_CACHE   where what takes long to build is kept; without it, in .cache/kube of the repository
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
	defer stop()
	err := run(ctx, os.Args[1:])
	var missing missingError
	switch {
	case err == nil:
	case errors.As(err, &missing) && os.Getenv("CI") != "true":
		fmt.Fprintln(os.Stderr, "SKIP: kindlab:", err)
	default:
		fmt.Fprintln(os.Stderr, "kindlab:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: kindlab image | up | exec COMMAND... | load FILE... | down | test [FLAGS...]")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	l, err := newLab()
	if err != nil {
		return err
	}
	verb, rest := args[0], args[1:]
	switch {
	case verb == "image" && len(rest) == 0:
		return l.image(ctx)
	case verb == "up" && len(rest) == 0:
		return l.up(ctx)
	case verb == "exec" && len(rest) > 0:
		return l.exec(ctx, rest)
	case verb == "load" && len(rest) > 0:
		return l.load(ctx, rest...)
	case verb == "down" && len(rest) == 0:
		return l.down()
	case verb == "test":
		return l.test(ctx, rest)
	default:
		return errUsage
	}
}

// missingError says that the machine lacks something, and how to get it. Outside of CI that is no failure.
type missingError struct{ what, command string }

func (e missingError) Error() string {
	if e.command == "" {
		return e.what
	}
	return e.what + "; get it with: " + e.command
}
