package capture

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// InstallIn puts the rules in force in the network namespace that a file stands for.
func InstallIn(netns string, r Rules) error {
	f, err := os.Open(netns) //nolint:gosec // G304: the container runtime names it
	if err != nil {
		return fmt.Errorf("capture: network namespace: %w", err)
	}
	defer func() { _ = f.Close() }() // only used
	done := make(chan error, 1)
	go func() {
		// A namespace is a thread's. This one is never given back: it ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("capture: network namespace %s: %w (it needs CAP_SYS_ADMIN)", netns, err)
			return
		}
		done <- Install(r)
	}()
	return <-done
}
