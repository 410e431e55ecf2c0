package capture

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/sidecar/conn"
)

// patience bounds every wait in these tests; nothing is measured with it.
const patience = 20 * time.Second

// namespaces runs f on a thread that is in a network namespace of its own, which ends with it. Without the right to make one, it skips.
func namespaces(t *testing.T, f func()) {
	t.Helper()
	missing := func(what string) {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must have %s", what)
		}
		t.Skipf("needs %s: run it with sudo, on Linux, with iproute2 installed", what)
	}
	if os.Geteuid() != 0 {
		missing("root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		missing("iproute2")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("a network namespace: %v", err)
			return
		}
		f()
	}()
	<-done
}

// ip runs ip(8) in the thread's namespace.
func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v: %s", args, err, out)
		runtime.Goexit()
	}
}

func listen(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Errorf("listen: %v", err)
		runtime.Goexit()
	}
	t.Cleanup(func() { _ = l.Close() })
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	return l.(*net.TCPListener)
}

// reaches opens a connection to an address from the thread's namespace, and returns where the listener says that it was opened to.
func reaches(t *testing.T, l *net.TCPListener, to string) netip.AddrPort {
	t.Helper()
	// In this goroutine: another one would be on another thread, in another namespace.
	c, err := (&net.Dialer{Timeout: patience}).Dial("tcp", to)
	if err != nil {
		t.Errorf("dial %s: %v", to, err)
		return netip.AddrPort{}
	}
	defer func() { _ = c.Close() }()
	taken, err := l.Accept()
	if err != nil {
		t.Errorf("%s was not brought here: %v", to, err)
		return netip.AddrPort{}
	}
	defer func() { _ = taken.Close() }()
	original, err := conn.Original(conn.Tell(taken))
	if err != nil {
		t.Errorf("%s: %v", to, err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = taken.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); err != nil { // answers find their way back
		t.Errorf("%s: %v", to, err)
	}
	return original
}

func refused(t *testing.T, to string) {
	t.Helper()
	c, err := (&net.Dialer{Timeout: patience}).Dial("tcp", to)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s: %v, want it refused, as without a capture", to, err)
	}
}

// TestPod: what a pod opens to a service is brought to its sidecar, over IPv4 and IPv6; what it opens elsewhere, and what the
// sidecar opens, is not.
func TestPod(t *testing.T) {
	namespaces(t, func() {
		ip(t, "link set lo up")
		ip(t, "address add 198.51.100.1/32 dev lo") // somebody else's, where nobody listens
		ip(t, "address add 10.1.0.2/32 dev lo")
		ip(t, "route add 241.0.0.0/8 dev lo src 10.1.0.2")
		ip(t, "-6 address add fd00:5::1/128 dev lo nodad")
		ip(t, "-6 route add fd00:241::/64 dev lo")
		four, six := listen(t, "127.0.0.1:15006"), listen(t, "[::1]:15006")
		rules := Rules{To: prefixes("241.0.0.0/8", "fd00:241::/64"), Port: 15006}
		for range 2 { // again is the same
			if err := Install(rules); err != nil {
				t.Error(err)
				return
			}
			if got := reaches(t, four, "241.0.0.7:80"); got.String() != "241.0.0.7:80" {
				t.Errorf("opened to %s", got)
			}
			if got := reaches(t, six, "[fd00:241::7]:8443"); got.String() != "[fd00:241::7]:8443" {
				t.Errorf("opened to %s", got)
			}
			refused(t, "198.51.100.1:80")
		}
		// Root is the sidecar now.
		rules.SkipUsers = []uint32{7, 0}
		if err := Install(rules); err != nil {
			t.Error(err)
		}
		ip(t, "address add 241.0.0.7/32 dev lo")
		refused(t, "241.0.0.7:80")
		rules.SkipUsers = []uint32{15000}
		if err := Install(rules); err != nil {
			t.Error(err)
		}
		if got := reaches(t, four, "241.0.0.7:80"); got.String() != "241.0.0.7:80" {
			t.Errorf("opened to %s", got)
		}
		// What is left out by its address or port is not brought; the rest of the same addresses is.
		rules.SkipTo, rules.SkipPorts = prefixes("241.0.0.0/30", "fd00:241::7/128"), []uint16{81}
		ip(t, "address add 241.0.0.1/32 dev lo")
		ip(t, "-6 address add fd00:241::7/128 dev lo nodad")
		if err := Install(rules); err != nil {
			t.Error(err)
		}
		for _, to := range []string{"241.0.0.1:80", "241.0.0.7:81", "[fd00:241::7]:80"} {
			refused(t, to)
		}
		if got := reaches(t, four, "241.0.0.7:80"); got.String() != "241.0.0.7:80" {
			t.Errorf("opened to %s", got)
		}
		// Whether they are in force can be found out without the right to look.
		for _, listener := range []*net.TCPListener{four, six} {
			_ = listener.Close()
		}
		for range 2 {
			if err := Verify(t.Context(), rules); err != nil {
				t.Error(err)
			}
		}
		leftAlone := rules
		leftAlone.SkipUsers = []uint32{0}
		if err := Install(leftAlone); err != nil {
			t.Error(err)
		}
		if err := Verify(t.Context(), rules); !errors.Is(err, ErrNotInForce) {
			t.Errorf("rules that leave root alone: %v", err)
		}
		four = listen(t, "127.0.0.1:15006")
		for range 2 { // what is out is out
			if err := Remove(); err != nil {
				t.Error(err)
			}
			refused(t, "241.0.0.7:80")
		}
		// A connection that nobody captured has no other destination than its own.
		c, err := net.Dial("tcp", "127.0.0.1:15006")
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = c.Close() }()
		taken, err := four.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = taken.Close() }()
		if got, err := conn.Original(taken); err == nil && got.String() != "127.0.0.1:15006" {
			t.Errorf("opened to %s", got)
		}
	})
}

// TestNode: what comes in from a pod, and what the node's own processes open, is brought to the node proxy's listener.
func TestNode(t *testing.T) {
	namespaces(t, func() {
		node, openErr := os.Open("/proc/thread-self/ns/net")
		if openErr != nil {
			t.Error(openErr)
			return
		}
		defer func() { _ = node.Close() }()
		ip(t, "link set lo up")
		ip(t, "link add pod type veth peer name eth0")
		ip(t, "address add 192.0.2.7/32 dev lo")
		ip(t, "address add 10.1.0.1/32 dev pod")
		ip(t, "route add 241.0.0.0/8 dev lo")
		ip(t, "link set pod up")
		l := listen(t, "192.0.2.7:15006")
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
			t.Error(err)
		}
		if err := Install(Rules{To: prefixes("241.0.0.0/8", "fd00:241::/64"), Port: 15006, Node: netip.MustParseAddr("192.0.2.7")}); err != nil {
			t.Error(err)
			return
		}
		if got := reaches(t, l, "241.0.0.7:80"); got.String() != "241.0.0.7:80" {
			t.Errorf("from the node, opened to %s", got)
		}

		// A pod: a namespace of its own at the other end of the veth.
		made := make(chan int)
		end := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Errorf("a network namespace: %v", err)
			}
			made <- unix.Gettid()
			<-end
		}()
		pod := <-made
		defer close(end)
		ip(t, "link set eth0 netns /proc/"+strconv.Itoa(os.Getpid())+"/task/"+strconv.Itoa(pod)+"/ns/net")
		ip(t, "route add 10.1.0.2/32 dev pod")
		ns, err := os.Open("/proc/" + strconv.Itoa(os.Getpid()) + "/task/" + strconv.Itoa(pod) + "/ns/net")
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = ns.Close() }()
		enter := func(f *os.File) {
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				t.Errorf("setns: %v", err)
				runtime.Goexit()
			}
		}
		enter(ns)
		ip(t, "link set lo up")
		ip(t, "address add 10.1.0.2/24 dev eth0")
		ip(t, "link set eth0 up")
		ip(t, "route add default via 10.1.0.1 onlink dev eth0")
		if got := reaches(t, l, "241.0.0.7:80"); got.String() != "241.0.0.7:80" {
			t.Errorf("from the pod, opened to %s", got)
		}
		enter(node)

		// Where the way to other machines leads, nobody is captured, as soon as it leads there. A bridge may be the way to both.
		s := &stay{base: Rules{To: prefixes("241.0.0.0/8"), Port: 15006, Node: netip.MustParseAddr("192.0.2.7")}, log: slog.New(slog.DiscardHandler)}
		ip(t, "route replace unreachable 241.0.0.0/8")
		for _, step := range []struct {
			commands string
			captured bool
		}{
			{"route add unreachable default", true},
			{"route replace default dev pod", false},
			{"route replace default nexthop dev lo nexthop dev pod", false},
			{"route del default", true},
			{"-6 route add default dev pod", false},
			{"-6 route del default dev pod", true},
			{"route add default dev pod table 7", true},
			{"link add bridge type bridge|link set bridge up|link set pod master bridge|address add 10.1.0.1/32 dev bridge|route replace 10.1.0.2/32 dev bridge|route add default dev bridge", true},
		} {
			for command := range strings.SplitSeq(step.commands, "|") {
				ip(t, command)
			}
			for range 2 { // the second finds nothing to do
				if err := s.look(t.Context()); err != nil {
					t.Errorf("%s: %v", step.commands, err)
				}
			}
			enter(ns)
			if step.captured {
				if got := reaches(t, l, "241.0.0.7:80"); got.String() != "241.0.0.7:80" {
					t.Errorf("%s: opened to %s", step.commands, got)
				}
			} else if c, err := (&net.Dialer{Timeout: patience}).Dial("tcp", "241.0.0.7:80"); !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("%s: %v, %v; want no route, as without a capture", step.commands, c, err)
			}
			enter(node)
		}
	})
}
