package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Available returns why there can be no such networks here, or nil. Every error is ErrUnavailable.
func Available() error {
	if os.Getuid() != 0 {
		return fmt.Errorf("%w: that needs root", ErrUnavailable)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return fmt.Errorf("%w: the command ip is missing (package iproute2)", ErrUnavailable)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Make makes the namespaces and the wires within the sites. What is there already, under the network's name, is made anew.
func (n Network) Make(ctx context.Context) error {
	if err := errors.Join(n.check(), Available()); err != nil {
		return err
	}
	if err := n.Remove(ctx); err != nil {
		return err
	}
	for _, b := range n.plan() {
		if err := b.run(ctx); err != nil {
			return errors.Join(err, n.Remove(context.WithoutCancel(ctx)))
		}
	}
	for _, s := range n.Sites {
		if err := in(Path(n.Router(s.Name)), func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600)
		}); err != nil {
			return errors.Join(fmt.Errorf("netns: %s: %w", n.Router(s.Name), err), n.Remove(context.WithoutCancel(ctx)))
		}
	}
	return nil
}

// Attach gives the TUN devices, which must be there, their addresses and routes.
func (n Network) Attach(ctx context.Context) error {
	for _, b := range n.attach() {
		if err := b.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Exists reports whether all of its namespaces are there.
func (n Network) Exists() bool {
	for _, ns := range n.namespaces() {
		if _, err := os.Stat(Path(ns)); err != nil {
			return false
		}
	}
	return true
}

// Remove removes every namespace that has the network's name in its own.
func (n Network) Remove(ctx context.Context) error {
	if n.Name == "" {
		return errors.New("netns: a network without a name")
	}
	paths, err := filepath.Glob(Path(n.Name + "-*"))
	if err != nil || len(paths) == 0 {
		return err
	}
	var b batch
	for _, p := range paths {
		b.commands = append(b.commands, "netns del "+filepath.Base(p))
	}
	return b.run(ctx)
}

func (b batch) run(ctx context.Context) error {
	args := []string{"-batch", "-"}
	if b.namespace != "" {
		args = append([]string{"-n", b.namespace}, args...)
	}
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("netns: ip %s: %w: %s", strings.Join(args[:len(args)-2], " "), err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

// in runs f in a network namespace.
func in(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// A namespace is a thread's. This one is never given back: it ends with the goroutine.
		runtime.LockOSThread()
		ns, err := os.Open(path) //nolint:gosec // G304: of /run/netns
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Do runs f in a namespace, on a thread that is nobody else's and ends with it: sockets that f makes, without starting goroutines, are there.
func Do(namespace string, f func() error) error { return in(Path(namespace), f) }

// Dial connects to an address, which is one of IP and port, as a program in the namespace would.
func Dial(ctx context.Context, namespace, network, address string) (conn net.Conn, err error) {
	// Of an address, net.Dialer asks nobody and starts no other goroutine: the socket is this thread's.
	err = in(Path(namespace), func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// DialAs is Dial by another user: rules of the kernel may ask who opens a connection.
func DialAs(ctx context.Context, namespace string, user int, network, address string) (conn net.Conn, err error) {
	err = in(Path(namespace), func() error {
		// Who one is, as the kernel sees it, is a thread's too; only Go's own calls change all threads.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(user), uintptr(user), uintptr(user)); errno != 0 {
			return errno
		}
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Command returns how a program is run in the namespace: by ip, in whose place it then stands.
func Command(namespace, path string, args []string) (string, []string, error) {
	ip, err := exec.LookPath("ip")
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return ip, append([]string{"netns", "exec", namespace, path}, args...), nil
}
