package sidecar

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// tcpApp is an application that speaks no HTTP.
func tcpApp(tb testing.TB, serve func(*net.TCPConn)) netip.AddrPort {
	tb.Helper()
	ln := listenTCP(tb)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				serve(c.(*net.TCPConn)) // it is one
			})
		}
	})
	tb.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return addrOf(ln)
}

// whole reads to the end, then answers with what it read, in capitals: it needs both half-closes.
func whole(c *net.TCPConn) {
	b, err := io.ReadAll(c)
	if err != nil {
		return
	}
	_, _ = c.Write(bytes.ToUpper(b))
}

// opaque is a caller in eu that reaches servers in both clusters, and the ways in which its application does.
func (w *world) opaqueCaller(v view) (*side, map[string]func() net.Conn) {
	w.Helper()
	v.protocol = topology.TCP
	direct := listenTCP(w)
	c := w.caller(v, func(c *Config) {
		c.Listeners = []LocalListener{{Service: checkout, Port: 80, Listener: direct}}
	})
	return c, map[string]func() net.Conn{
		"CONNECT": func() net.Conn {
			conn, err := c.through(w.Context(), "", "checkout.shop.svc.clusterset.local:80")
			if err != nil {
				w.Fatal(err)
			}
			return conn
		},
		"local listener": func() net.Conn {
			conn, err := net.Dial("tcp", direct.Addr().String())
			if err != nil {
				w.Fatal(err)
			}
			return conn
		},
	}
}

func TestOpaque(t *testing.T) {
	w := newWorld(t)
	far := w.server(us, "checkout", topology.TCP, tcpApp(t, whole))
	w.gateway("gateway-0", to(far))
	c, ways := w.opaqueCaller(view{remotes: []topology.Remote{remote(1, far)}})
	for what, dial := range ways {
		for _, size := range []int{0, 5, 3 << 20} {
			conn := dial()
			sent := strings.Repeat("x", size)
			go func() {
				_, _ = io.WriteString(conn, sent)
				_ = conn.(*net.TCPConn).CloseWrite() // it is one
			}()
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != strings.ToUpper(sent) {
				t.Errorf("%s: %d bytes: got %d, %v", what, size, len(got), err)
			}
			_ = conn.Close()
		}
	}
	waitFor(t, "the sessions end", func() bool { return c.counter("isthmus_sessions") == 0 })
	want := float64(2 * (5 + 3<<20))
	waitFor(t, "the bytes are counted", func() bool {
		return c.counter("isthmus_tcp_bytes_total", "way=sent", "destination_cluster=us") == want &&
			far.counter("isthmus_tcp_bytes_total", "way=received") == want
	})
}

// TestOpaqueServerFirst: who speaks first does not matter.
func TestOpaqueServerFirst(t *testing.T) {
	w := newWorld(t)
	near := w.server(eu, "checkout", topology.TCP, tcpApp(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "hello\n")
		_, _ = io.Copy(c, c)
	}))
	_, ways := w.opaqueCaller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}})
	for what, dial := range ways {
		conn := dial()
		buf := make([]byte, 6)
		if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "hello\n" {
			t.Errorf("%s: %q, %v", what, buf, err)
		}
		for range 3 {
			_, _ = io.WriteString(conn, "again\n")
			if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "again\n" {
				t.Errorf("%s: %q, %v", what, buf, err)
			}
		}
		_ = conn.Close()
	}
}

// TestOpaqueFailover: a copy that does not take the connection costs nothing, as nothing was sent.
func TestOpaqueFailover(t *testing.T) {
	w := newWorld(t)
	closed := listenTCP(t)
	_ = closed.Close()
	appDown := w.server(eu, "checkout", topology.TCP, addrOf(closed)).endpoint("checkout-0")
	down := appDown
	down.ID, down.Address = "checkout-1", addrOf(closed)
	far := w.server(us, "checkout", topology.TCP, tcpApp(t, whole))
	w.gateway("gateway-0", to(far))
	_, ways := w.opaqueCaller(view{endpoints: []topology.Endpoint{appDown, down}, remotes: []topology.Remote{remote(1, far)}})
	for what, dial := range ways {
		for range 5 {
			conn := dial()
			_, _ = io.WriteString(conn, "x")
			_ = conn.(*net.TCPConn).CloseWrite() // it is one
			if got, err := io.ReadAll(conn); err != nil || string(got) != "X" {
				t.Errorf("%s: %q, %v", what, got, err)
			}
			_ = conn.Close()
		}
	}
	// Nobody takes it: the application hears so.
	_, ways = w.opaqueCaller(view{endpoints: []topology.Endpoint{appDown, down}})
	conn := ways["local listener"]()
	if got, err := io.ReadAll(conn); err == nil || len(got) != 0 {
		t.Errorf("no copy, and the connection ended in order: %q", got)
	}
	_ = conn.Close()
	c, _ := w.opaqueCaller(view{endpoints: []topology.Endpoint{appDown, down}})
	if _, err := c.through(t.Context(), "", "checkout.shop.svc.clusterset.local:80"); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), string(CodeNoAnswer)) {
		t.Errorf("CONNECT to nobody: %v", err)
	}
}

// TestOpaqueTruncation: what is cut off does not look complete, on either side.
func TestOpaqueTruncation(t *testing.T) {
	w := newWorld(t)
	ended := make(chan error, 10)
	far := w.server(us, "checkout", topology.TCP, tcpApp(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "half")
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}))
	g := w.gateway("gateway-0", to(far))
	_, ways := w.opaqueCaller(view{remotes: []topology.Remote{remote(1, far)}})
	for what, dial := range ways {
		conn := dial()
		buf := make([]byte, 4)
		if _, err := io.ReadFull(conn, buf); err != nil {
			t.Fatal(err)
		}
		g.cut()
		if got, err := io.ReadAll(conn); err == nil {
			t.Errorf("%s: ended in order after %q", what, got)
		}
		_ = conn.Close()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s: the application saw an end in order", what)
			}
		case <-time.After(patience):
			t.Fatalf("%s: the application never heard", what)
		}
	}
	// The application dies: its caller sees that, too.
	dying := w.server(us, "checkout", topology.TCP, tcpApp(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "half")
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	}))
	g.set(to(dying))
	conn := ways["CONNECT"]()
	_, _ = io.WriteString(conn, "x")
	if got, err := io.ReadAll(conn); err == nil {
		t.Errorf("ended in order after %q", got)
	}
	_ = conn.Close()
}

// TestRequestsToATCPPort: an absolute-form request is HTTP, whatever the port is said to speak.
func TestRequestsToATCPPort(t *testing.T) {
	w := newWorld(t)
	_, there := serveApp(t, answering("us"))
	far := w.server(us, "checkout", topology.TCP, there)
	w.gateway("gateway-0", to(far))
	c, _ := w.opaqueCaller(view{remotes: []topology.Remote{remote(1, far)}})
	if resp, body := get(t, c.client(), checkoutURL); resp.StatusCode != http.StatusOK || body != "us /" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}

// TestDrain: what is in flight ends, what is new is refused.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	_, there := serveApp(t, func(w http.ResponseWriter, _ *http.Request) {
		entered <- struct{}{}
		<-leave
		_, _ = io.WriteString(w, "whole")
	})
	far := w.server(us, "checkout", topology.HTTP, there)
	w.gateway("gateway-0", to(far))
	for _, which := range []string{"caller", "called"} {
		c := w.caller(view{remotes: []topology.Remote{remote(1, far)}}, nil)
		answered := make(chan string)
		go func() {
			resp, body := get(t, c.client(), checkoutURL)
			answered <- resp.Status + " " + body
		}()
		<-entered
		stopped := make(chan error)
		ending := c
		if which == "called" {
			ending = far
		}
		go func() { stopped <- ending.stop() }()
		waitFor(t, which+" refuses new connections", func() bool {
			address := ending.proxy.Host
			if which == "called" {
				address = ending.inbound.String()
			}
			conn, err := net.Dial("tcp", address)
			if err == nil {
				_ = conn.Close()
			}
			return err != nil
		})
		leave <- struct{}{}
		if got := <-answered; got != "200 OK whole" {
			t.Errorf("%s ends: got %q", which, got)
		}
		if err := <-stopped; err != nil {
			t.Errorf("%s: %v", which, err)
		}
	}
}

// TestDrainIsPolite: requests that may be repeated and come while a copy is ending go to another. One that may not, and was on its way
// when net/http's server closed the session behind its last stream, is answered 502: nothing tells that it was not served.
func TestDrainIsPolite(t *testing.T) {
	w := newWorld(t)
	one, two := &ledger{name: "one"}, &ledger{name: "two"}
	_, a := serveApp(t, one.ServeHTTP)
	_, b := serveApp(t, two.ServeHTTP)
	first, second := w.server(us, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b)
	g := w.gateway("gateway-0", to(first))
	c := w.caller(view{remotes: []topology.Remote{remote(2, first, second)}}, nil)
	client := c.client()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, strings.NewReader("x"))
				req.Header.Set("Idempotency-Key", "k")
				resp, err := client.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK || err != nil {
					t.Errorf("got %s %q %v", resp.Status, body, err)
				}
			}
		})
	}
	waitFor(t, "requests", func() bool { return one.times("") > 20 })
	g.set(to(second))
	if err := first.stop(); err != nil {
		t.Error(err)
	}
	waitFor(t, "requests on the other copy", func() bool { return two.times("") > 20 })
	close(stop)
	wg.Wait()
	if n := c.counter("isthmus_ejections_total"); n != 0 {
		t.Errorf("%v ejections", n)
	}
}

// TestListenerFails: Run says so, and ends.
func TestListenerFails(t *testing.T) {
	w := newWorld(t)
	ln := listenTCP(t)
	s := w.start(must(trust.WorkloadID(eu, "shop", "web")), nil, func(c *Config) { c.Inbound = &failing{ln, errors.New("no such device")} })
	waitFor(t, "Run ends", func() bool {
		conn, err := net.Dial("tcp", s.proxy.Host)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	if err := s.stop(); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("Run: %v", err)
	}
	s.stop = func() error { return nil }
}

type failing struct {
	net.Listener
	err error
}

func (f *failing) Accept() (net.Conn, error) { return nil, f.err }
