package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// docker is the daemon that nodes run in.
type docker struct {
	env   []string // DOCKER_HOST, where it is ours
	enter []string // a command before each that wants to reach nodes
}

// do runs docker and returns what it printed.
func (d docker) do(ctx context.Context, args ...string) (string, error) {
	return output(ctx, d.env, "docker", args...)
}

// has reports whether the daemon has an image.
func (d docker) has(ctx context.Context, image string) bool {
	_, err := d.do(ctx, "image", "inspect", image)
	return err == nil
}

// reach finds the daemon that the environment names, or the usual one.
func reach(ctx context.Context) (docker, bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := docker{}.do(ctx, "version")
	return docker{}, err == nil
}

// connect finds the daemon, and starts one where there is none.
func (l *lab) connect(ctx context.Context) error {
	if err := need("docker"); err != nil {
		return err
	}
	if d, ok := reach(ctx); ok {
		l.docker = d
		return os.MkdirAll(l.run, 0o700)
	}
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		return fmt.Errorf("no Docker daemon answers at DOCKER_HOST=%s", host)
	}
	return l.startDaemon(ctx)
}
