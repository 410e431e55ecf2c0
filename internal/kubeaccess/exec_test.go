package kubeaccess_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess/kubetest"
)

func dial(ctx context.Context, t *testing.T, s *kubetest.Server) (io.ReadWriteCloser, error) {
	t.Helper()
	c, err := kubeaccess.Source{Kubeconfig: kubetest.Kubeconfig(t, map[string]*kubetest.Server{"eu": s})}.Cluster("eu")
	if err != nil {
		t.Fatal(err)
	}
	return c.DialExec(ctx, "isthmus-system", "isthmus-control-0", "control", "/isthmus", "admin-pipe")
}

// echo greets, says what it was called with, and answers each line until its input ends.
func echo(pod string, command []string, stdin io.Reader, stdout, _ io.Writer) int {
	_, _ = io.WriteString(stdout, kubeaccess.Greeting[:7])
	_, _ = io.WriteString(stdout, kubeaccess.Greeting[7:]+pod+" "+strings.Join(command, " ")+"\n")
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		if _, err := fmt.Fprintln(stdout, "heard "+lines.Text()); err != nil {
			return 1
		}
	}
	return 0
}

func TestDialExec(t *testing.T) {
	for _, noWebSockets := range []bool{false, true} {
		s := kubetest.New(t)
		s.NoWebSockets = noWebSockets
		ended := make(chan struct{})
		s.Exec = func(pod string, command []string, stdin io.Reader, stdout, stderr io.Writer) int {
			defer close(ended)
			return echo(pod, command, stdin, stdout, stderr)
		}
		ctx, cancel := context.WithCancel(t.Context())
		conn, err := dial(ctx, t, s)
		if err != nil {
			t.Fatal(err)
		}
		cancel() // it bounds the dialling alone
		lines := bufio.NewScanner(conn)
		for _, c := range []struct{ say, want string }{
			{"", "isthmus-control-0 /isthmus admin-pipe"}, {"one\n", "heard one"}, {"two\n", "heard two"},
		} {
			if _, err := io.WriteString(conn, c.say); err != nil {
				t.Fatal(err)
			}
			if !lines.Scan() || lines.Text() != c.want {
				t.Errorf("got %q, %v; want %q", lines.Text(), lines.Err(), c.want)
			}
		}
		_ = conn.Close()
		<-ended // the command hears that its input ended
		posted := slices.ContainsFunc(s.Requests(), func(r string) bool { return strings.HasPrefix(r, "POST ") })
		if posted != noWebSockets {
			t.Errorf("without WebSockets %v: %q", noWebSockets, s.Requests())
		}
	}
}

func TestDialExecThatFails(t *testing.T) {
	s := kubetest.New(t)
	if _, err := dial(t.Context(), t, s); !apierrors.IsNotFound(err) {
		t.Errorf("no such Pod: %v", err)
	}
	s = kubetest.New(t)
	s.Forbid("GET", "/api/v1/namespaces/isthmus-system/pods/isthmus-control-0/exec", "you may not create pods/exec")
	s.Forbid("POST", "/api/v1/namespaces/isthmus-system/pods/isthmus-control-0/exec", "you may not create pods/exec")
	if _, err := dial(t.Context(), t, s); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "pods/exec") {
		t.Errorf("forbidden: %v", err)
	}

	var ended *kubeaccess.ExecError
	s = kubetest.New(t)
	s.Exec = func(_ string, _ []string, _ io.Reader, _, stderr io.Writer) int {
		_, _ = io.WriteString(stderr, "isthmus: no socket\n")
		return 3
	}
	if _, err := dial(t.Context(), t, s); !errors.As(err, &ended) || ended.Stderr != "isthmus: no socket" || !strings.Contains(err.Error(), "exit code 3") {
		t.Errorf("a command that fails: %v", err)
	}
	s = kubetest.New(t)
	s.Exec = func(_ string, _ []string, stdin io.Reader, stdout, _ io.Writer) int {
		_, _ = io.WriteString(stdout, "HTTP/1.1 200 OK\r\n")
		_, _ = io.Copy(io.Discard, stdin)
		return 0
	}
	if _, err := dial(t.Context(), t, s); !errors.As(err, &ended) || !strings.Contains(err.Error(), `"HTTP/1.1 200 OK`) {
		t.Errorf("a command that doesn't greet: %v", err)
	}
	s = kubetest.New(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	s.Exec = func(_ string, _ []string, stdin io.Reader, _, _ io.Writer) int {
		cancel(context.DeadlineExceeded)
		_, _ = io.Copy(io.Discard, stdin)
		return 0
	}
	if _, err := dial(ctx, t, s); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command that hangs: %v", err)
	}
}

func TestDialPort(t *testing.T) {
	s := kubetest.New(t)
	s.Forward = func(pod, port string, data io.ReadWriter) string {
		if port != "15020" {
			return "connection refused"
		}
		lines := bufio.NewScanner(data)
		if lines.Scan() {
			_, _ = fmt.Fprintln(data, pod, port, "heard", lines.Text())
		}
		return ""
	}
	c, err := kubeaccess.Source{Kubeconfig: kubetest.Kubeconfig(t, map[string]*kubetest.Server{"eu": s})}.Cluster("eu")
	if err != nil {
		t.Fatal(err)
	}
	for port, want := range map[uint16]string{15020: "web-0 15020 heard hello\n", 1: "connection refused"} {
		conn, errDial := c.DialPort(t.Context(), "shop", "web-0", port)
		if errDial != nil {
			t.Fatal(errDial)
		}
		_, _ = io.WriteString(conn, "hello\n")
		said, errRead := io.ReadAll(conn)
		if got := string(said) + fmt.Sprint(errRead); strings.TrimSuffix(got, "<nil>") != want {
			t.Errorf("port %d: %q, want %q", port, got, want)
		}
		if errClose := conn.Close(); errClose != nil {
			t.Error(errClose)
		}
	}
	s = kubetest.New(t)
	if c, err = (kubeaccess.Source{Kubeconfig: kubetest.Kubeconfig(t, map[string]*kubetest.Server{"eu": s})}).Cluster("eu"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DialPort(t.Context(), "shop", "web-0", 15020); !apierrors.IsNotFound(err) {
		t.Errorf("no such Pod: %v", err)
	}
}
