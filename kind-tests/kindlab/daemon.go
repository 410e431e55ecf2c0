package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Docker daemon of our own lives in a network namespace of its own: its rules, bridges and addresses meet nobody else's. What it has of
// images is in the cache, and survives it.

const (
	netns = "isthmus-kind"
	// daemonTime bounds the start and the end of the daemon.
	daemonTime = 60 * time.Second
	// capSysResource is its bit in the masks of capabilities.
	capSysResource = 24
)

// sysctls are what kubelets write, which is the whole machine's; and what they need more of.
var sysctls = []string{
	"kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxbytes", "kernel/keys/root_maxkeys",
	"vm/overcommit_memory", "fs/inotify/max_user_instances", "fs/inotify/max_user_watches",
}

const (
	minInotifyInstances = 1024
	minInotifyWatches   = 524288
)

func (l *lab) socket() string { return "unix://" + l.file("docker.sock") }

func (l *lab) ours() docker {
	return docker{env: []string{"DOCKER_HOST=" + l.socket()}, enter: []string{"nsenter", "--net=/run/netns/" + netns}}
}

// daemonPID is that of our daemon; 0 where it does not run. A number alone may be another's by now.
func (l *lab) daemonPID() int {
	data, err := os.ReadFile(l.file("docker.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), l.socket()) {
		return 0
	}
	return pid
}

func (l *lab) startDaemon(ctx context.Context) error {
	if os.Getuid() != 0 {
		return missingError{what: "no Docker daemon answers, and only root can start one: set DOCKER_HOST, or run it as root"}
	}
	if err := need("dockerd", "containerd", "runc", "ip", "iptables", "nsenter"); err != nil {
		return err
	}
	l.docker = l.ours()
	if l.daemonPID() != 0 {
		return nil
	}
	l.say("no Docker daemon answers: starting one")
	if err := l.stopDaemon(); err != nil { // of a run that was killed
		return fmt.Errorf("clear away what an earlier run has left: %w", err)
	}
	if err := os.MkdirAll(l.run, 0o700); err != nil {
		return err
	}
	if err := l.saveSysctls(); err != nil {
		return err
	}
	if err := l.launch(ctx); err != nil {
		return errors.Join(err, l.stopDaemon())
	}
	return nil
}

func (l *lab) launch(ctx context.Context) error {
	if _, err := output(ctx, nil, "ip", "netns", "add", netns); err != nil {
		return err
	}
	if _, err := output(ctx, nil, "ip", "-n", netns, "link", "set", "lo", "up"); err != nil {
		return err
	}
	args := []string{
		"--net=/run/netns/" + netns, "dockerd",
		"--config-file", l.file("daemon.json"), "--data-root", filepath.Join(l.cache, "docker"), "--exec-root", l.file("exec"),
		"--pidfile", l.file("docker.pid"), "--host", l.socket(), "--bip", "172.30.0.1/24",
	}
	if err := os.WriteFile(l.file("daemon.json"), []byte("{}"), 0o600); err != nil { // not the machine's
		return err
	}
	more, err := l.lesserRunc()
	if err != nil {
		return err
	}
	log, err := os.Create(l.file("dockerd.log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("nsenter", append(args, more...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt from the terminal is for us, who then end it in order
	if err = cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // for as long as the daemon lives, which may be longer than we do
	deadline := time.After(daemonTime)
	for {
		if _, err = l.docker.do(ctx, "version"); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case failed := <-ended:
			return fmt.Errorf("dockerd has ended (%w); the end of its log:\n%s", failed, l.logTail())
		case <-deadline:
			return fmt.Errorf("dockerd does not answer after %s: %w; the end of its log:\n%s", daemonTime, err, l.logTail())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (l *lab) logTail() string {
	data, err := os.ReadFile(l.file("dockerd.log"))
	if err != nil {
		return err.Error()
	}
	return tail(string(data))
}

// runcWrapper: "docker run --privileged" asks for every capability that there is, also where the machine lacks one, and fails. Ask for one less.
const runcWrapper = `#!/bin/sh
previous=
for arg in "$@"; do
	case $previous in
	--bundle | -b) sed -i 's/"CAP_SYS_RESOURCE",//g' "$arg/config.json" ;;
	--process | -p) sed -i 's/"CAP_SYS_RESOURCE",//g' "$arg" ;;
	esac
	previous=$arg
done
exec %s "$@"
`

// lesserRunc makes the daemon use runcWrapper where it is needed.
func (l *lab) lesserRunc() (args []string, err error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(status), "\nCapBnd:")
	mask, err := strconv.ParseUint(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]), 16, 64)
	if err != nil || mask&(1<<capSysResource) != 0 {
		return nil, err
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return nil, err
	}
	path := l.file("runc")
	return []string{"--add-runtime", "lesser=" + path, "--default-runtime", "lesser"},
		os.WriteFile(path, fmt.Appendf(nil, runcWrapper, runc), 0o700)
}

// saveSysctls keeps what is about to be overwritten, and raises the number of watches: a cluster alone takes more than a machine allows.
func (l *lab) saveSysctls() error {
	var saved strings.Builder
	for _, name := range sysctls {
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil {
			fmt.Fprintf(&saved, "%s=%s", name, value)
		}
	}
	if err := os.WriteFile(l.file("sysctls"), []byte(saved.String()), 0o600); err != nil {
		return err
	}
	return errors.Join(
		atLeast("fs/inotify/max_user_instances", minInotifyInstances),
		atLeast("fs/inotify/max_user_watches", minInotifyWatches),
	)
}

func atLeast(name string, want int) error {
	data, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return err
	}
	if have, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && have >= want {
		return nil
	}
	return os.WriteFile("/proc/sys/"+name, []byte(strconv.Itoa(want)), 0o600)
}

func (l *lab) restoreSysctls() error {
	data, err := os.ReadFile(l.file("sysctls"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var errs []error
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, "=")
		if now, failed := os.ReadFile("/proc/sys/" + name); failed == nil && string(now) != value {
			errs = append(errs, os.WriteFile("/proc/sys/"+name, []byte(value), 0o600))
		}
	}
	return errors.Join(append(errs, err)...)
}

// stopDaemon ends our daemon and puts back all that came with it, but the images. It does what is left to do, whatever state a run ended in.
func (l *lab) stopDaemon() error {
	if pid := l.daemonPID(); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGTERM)
		for end := time.Now().Add(daemonTime); l.daemonPID() != 0; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				return fmt.Errorf("dockerd (process %d) has not ended after %s", pid, daemonTime)
			}
		}
	}
	err := l.restoreSysctls()
	if _, stat := os.Stat("/run/netns/" + netns); stat == nil {
		_, failed := output(context.Background(), nil, "ip", "netns", "delete", netns)
		err = errors.Join(err, failed)
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(l.run)
}
