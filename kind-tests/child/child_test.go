package child_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/kind-tests/child"
)

func sleeper(t *testing.T) *child.Process {
	t.Helper()
	p, err := child.Start(child.Config{Path: "/bin/sh", Args: []string{"-c", "echo begun; sleep 60 & wait"}, Log: filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStopAndKill(t *testing.T) {
	p := sleeper(t)
	if err := p.Err(); err != nil {
		t.Fatalf("it runs: %v", err)
	}
	if !p.Stop(10 * time.Second) {
		t.Error("it did not end when it was asked to")
	}
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "terminated") {
		t.Errorf("how it ended: %v", err)
	}
	p = sleeper(t)
	p.Kill()
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("how it ended: %v", err)
	}
	p.Kill() // again: nothing happens
}

func TestStartSaysWhatIsMissing(t *testing.T) {
	_, err := child.Start(child.Config{Path: "/no/such/program", Log: filepath.Join(t.TempDir(), "log")})
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("%v", err)
	}
}

// TestDiesWithParent runs this test binary again, as a parent that is killed.
func TestDiesWithParent(t *testing.T) {
	if os.Getenv("CHILD_TEST_PARENT") != "" {
		p, err := child.Start(child.Config{Path: "/bin/sh", Args: []string{"-c", "echo $$; exec sleep 60"}, Log: os.Getenv("CHILD_TEST_PARENT")})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("started\n")
		<-p.Done()
		return
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a program that its parent has died")
	}
	log := filepath.Join(t.TempDir(), "log")
	parent := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiesWithParent$")
	parent.Env = append(os.Environ(), "CHILD_TEST_PARENT="+log)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = parent.Start(); err != nil {
		t.Fatal(err)
	}
	if line, readErr := bufio.NewReader(out).ReadString('\n'); line != "started\n" {
		t.Fatalf("%q, %v", line, readErr)
	}
	pid := 0
	eventually(t, "the child says its number", func() bool {
		pid, err = strconv.Atoi(strings.TrimSpace(child.Tail(log, 1)))
		return err == nil && syscall.Kill(pid, 0) == nil
	})
	if err = parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	// Nobody may be there to reap it: then it stays, as a zombie.
	eventually(t, "the child is gone", func() bool {
		stat, readErr := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return readErr != nil || strings.Contains(string(stat), ") Z ")
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestAddresses(t *testing.T) {
	a, err := child.Addresses(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, address := range a {
		l, err := net.Listen("tcp4", address)
		if err != nil || seen[address] {
			t.Errorf("%s: %v, seen before: %t", address, err, seen[address])
			continue
		}
		seen[address] = true
		_ = l.Close()
	}
}

func TestTail(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(file, []byte(strings.Repeat("line\n", 50_000)+"b\nc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := child.Tail(file, 2); got != "b\nc" {
		t.Errorf("%q", got)
	}
	if got := child.Tail(file+"s", 2); !strings.Contains(got, "no such file") {
		t.Errorf("%q", got)
	}
}
