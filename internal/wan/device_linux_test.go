package wan

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestKernels: two kernels' stacks reach each other through the router, as fast and as badly as it says.
func TestKernels(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "network namespaces need root: sudo go test ./internal/wan")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		skip(t, "the command ip is missing: apt-get install iproute2")
	}
	var sites []Site
	for i, name := range []string{"a", "b"} {
		ns := fmt.Sprintf("wan-test-%d-%s", os.Getpid(), name)
		ip(t, "netns", "add", ns)
		t.Cleanup(func() { ip(t, "netns", "del", ns) })
		device, err := Open("wan0", "/run/netns/"+ns)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = device.Close() })
		address := fmt.Sprintf("10.%d.0.1", 81+i)
		ip(t, "-n", ns, "addr", "add", address+"/32", "dev", "wan0")
		ip(t, "-n", ns, "link", "set", "wan0", "up")
		ip(t, "-n", ns, "link", "set", "lo", "up")
		ip(t, "-n", ns, "route", "add", "default", "dev", "wan0", "src", address)
		sites = append(sites, Site{ns, []netip.Prefix{netip.MustParsePrefix(address + "/16").Masked()}, device})
	}
	r, err := New(1, sites...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for _, s := range sites {
			_ = s.Device.(*os.File).Close()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	a, b := sites[0].Name, sites[1].Name
	ping := func() (string, error) {
		out, err := exec.CommandContext(t.Context(), "ip", "netns", "exec", a, os.Args[0], "-test.run=^TestDial$").CombinedOutput()
		return string(out), err
	}
	serve := exec.CommandContext(t.Context(), "ip", "netns", "exec", b, os.Args[0], "-test.run=^TestListen$")
	serve.Env = append(os.Environ(), "WAN_TEST_LISTEN=10.82.0.1:7000")
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = serve.Process.Kill(); _ = serve.Wait() })
	t.Setenv("WAN_TEST_DIAL", "10.82.0.1:7000")
	link := func(words string) {
		t.Helper()
		l, err := ParseLink(words)
		if err == nil {
			err = r.Set(a, b, l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	link("30ms")
	if out, err := ping(); err != nil || !strings.Contains(out, "echoed") {
		t.Fatalf("through a link of 30 ms: %v\n%s", err, out)
	}
	if s := r.Stats(a, b); s.Passed < 3 {
		t.Errorf("no packet came through the router: %+v", s)
	}
	link("down")
	t.Setenv("WAN_TEST_ONCE", "1")
	if out, err := ping(); err == nil {
		t.Errorf("through a link that is down: %s", out)
	}
	if s := r.Stats(a, b); s.Cut == 0 {
		t.Errorf("nothing was cut off: %+v", s)
	}
	if s := r.Stats(b, a); s.Cut != 0 {
		t.Errorf("the other direction was cut off, too: %+v", s)
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	// Not t.Context: that has ended when cleanups run.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// skip skips the test, but in CI, where what it needs has to be there.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
