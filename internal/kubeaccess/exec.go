package kubeaccess

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
)

// Greeting is the line with which a command that DialExec starts says that from now on its standard input and output are the
// connection. A command that fails before it has nothing to do with the connection: what it wrote is its error.
const Greeting = "isthmus-admin-pipe 1\n"

// maxComplaint bounds what is kept of a command's standard error, and of what it writes in place of Greeting.
const maxComplaint = 4 << 10

// ExecError is a command that ended, or wrote something else, before it said Greeting.
type ExecError struct {
	Stderr string
	Err    error // how it ended: of remotecommand
}

// Error returns what the command said.
func (e *ExecError) Error() string {
	if e.Stderr == "" {
		return e.Err.Error()
	}
	return fmt.Sprintf("%s (%v)", e.Stderr, e.Err)
}

// Unwrap returns how the command ended.
func (e *ExecError) Unwrap() error { return e.Err }

// DialExec runs a command in a container and returns its standard input and output as a connection, once the command has said
// Greeting. Whoever may create pods/exec there may do this: nothing else is opened. ctx bounds the dialling, not the connection.
// Closing it ends the command. The error is an *ExecError, one of apimachinery, of ctx, or of the network.
func (c *Cluster) DialExec(ctx context.Context, namespace, pod, container string, command ...string) (net.Conn, error) {
	var refused error
	executor, err := c.executor(namespace, pod, container, command, &refused)
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	run, cancel := context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), logr.Discard())) // errors are returned
	defer context.AfterFunc(ctx, cancel)()                                                         // until it stands, the caller's end is its end
	conn := &execConn{Conn: near, cancel: cancel, ended: make(chan struct{})}
	stdout := &greeted{w: far, cancel: cancel, done: make(chan struct{})}
	var stderr complaint
	go func() {
		defer close(conn.ended)
		defer func() { _ = far.Close() }()
		conn.err = executor.StreamWithContext(run, remotecommand.StreamOptions{Stdin: far, Stdout: stdout, Stderr: &stderr})
	}()
	select {
	case <-stdout.done:
		return conn, nil
	case <-conn.ended:
	}
	_ = conn.Close()
	switch said := strings.TrimSpace(stderr.String()); {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case stdout.strange() != nil:
		return nil, &ExecError{said, stdout.strange()}
	case conn.err == nil:
		return nil, &ExecError{said, errors.New("the command ended before it was connected")}
	case said != "":
		return nil, &ExecError{said, conn.err}
	case refused != nil && strings.Contains(conn.err.Error(), refused.Error()):
		return nil, refused // the same words, with their type
	default:
		return nil, conn.err
	}
}

// executor tries WebSockets first, then SPDY: proxies in between, and old API servers, know only one of them. What
// the API server said to the first goes into refused; of the second's only the words are left.
func (c *Cluster) executor(namespace, pod, container string, command []string, refused *error) (remotecommand.Executor, error) {
	set, err := c.Clientset()
	if err != nil {
		return nil, err
	}
	url := set.CoreV1().RESTClient().Post().Resource("pods").Name(pod).Namespace(namespace).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdin: true, Stdout: true, Stderr: true},
			scheme.ParameterCodec).URL()
	web, err := remotecommand.NewWebSocketExecutor(c.Config, http.MethodGet, url.String())
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.Config, http.MethodPost, url)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, err)
	}
	return remotecommand.NewFallbackExecutor(web, spdy, fallBack(refused))
}

// fallBack says when SPDY is tried, and keeps what the API server had against WebSockets.
func fallBack(refused *error) func(error) bool {
	return func(err error) bool {
		var (
			upgrade *httpstream.UpgradeFailureError
			said    *apierrors.StatusError
		)
		if errors.As(err, &upgrade) && errors.As(upgrade.Cause, &said) {
			*refused = said
		}
		return upgrade != nil || httpstream.IsHTTPSProxyError(err)
	}
}

// execConn is the near end of a command's standard input and output.
type execConn struct {
	net.Conn
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // how the command ended; read after ended
}

// Close ends the command, and returns when it is no more attended to.
func (c *execConn) Close() error {
	err := c.Conn.Close()
	c.cancel()
	<-c.ended
	return err
}

// greeted passes on what is written after Greeting. Only one writes, but it may do so after its command has been given up.
type greeted struct {
	w      io.Writer
	cancel context.CancelFunc // called when something else came
	done   chan struct{}      // closed when Greeting has come

	mu    sync.Mutex
	begun []byte // guarded by mu: what came until done
	err   error  // guarded by mu: something else came
}

func (g *greeted) Write(b []byte) (int, error) {
	select {
	case <-g.done:
		return g.w.Write(b)
	default:
	}
	rest, err := g.greet(b)
	if err != nil {
		return 0, err
	}
	if len(rest) > 0 {
		if _, err := g.w.Write(rest); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// greet takes what came, and returns what of it comes after Greeting.
func (g *greeted) greet(b []byte) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.begun = append(g.begun, b...)
	switch head := g.begun[:min(len(g.begun), len(Greeting))]; {
	case g.err != nil:
	case !bytes.HasPrefix([]byte(Greeting), head):
		g.err = fmt.Errorf("the command said %q in place of its greeting", g.begun[:min(len(g.begun), 200)])
		g.cancel()
	case len(head) == len(Greeting):
		close(g.done)
		return g.begun[len(Greeting):], nil
	}
	return nil, g.err
}

func (g *greeted) strange() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// complaint keeps the beginning of what is written to it. Safe for concurrent use.
type complaint struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

func (c *complaint) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, b[:min(len(b), maxComplaint-len(c.buf))]...)
	return len(b), nil
}

func (c *complaint) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.buf)
}
