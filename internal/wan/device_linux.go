package wan

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Open makes a TUN device in a network namespace, which a file stands for (/run/netns/NAME; empty: the own one), and returns its packets. It
// has to be given addresses, and set up, by whoever owns the namespace, and is gone when it is closed. It needs CAP_NET_ADMIN.
func Open(name, netns string) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// A namespace is a thread's. This one is never given back: it ends with the goroutine.
		runtime.LockOSThread()
		f, err := openIn(name, netns)
		if err != nil {
			err = fmt.Errorf("wan: TUN device %s in %q: %w", name, netns, err)
		}
		done <- result{f, err}
	}()
	r := <-done
	return r.file, r.err
}

func openIn(name, netns string) (*os.File, error) {
	if netns != "" {
		ns, err := os.Open(netns) //nolint:gosec // G304: the caller's own
		if err != nil {
			return nil, err
		}
		defer func() { _ = ns.Close() }() // only used
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("enter: %w", err)
		}
	}
	// Not blocking, so that the runtime waits for packets, and a Close ends a Read.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd) // nothing was made of it
		return nil, err
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}
