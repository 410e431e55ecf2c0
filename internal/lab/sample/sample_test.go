package sample

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs the sample until the test ends, and returns the addresses of its HTTP and its echo port.
func start(t *testing.T) (httpAddr, tcpAddr string) {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	cfg := Config{Cluster: "us", Workload: "checkout-0", HTTP: listen(), TCP: listen()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return cfg.HTTP.Addr().String(), cfg.TCP.Addr().String()
}

// got is a response with its body read.
type got struct {
	status int
	proto  string
	header http.Header
	body   []byte
}

func get(t *testing.T, client *http.Client, url string) got {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return got{resp.StatusCode, resp.Proto, resp.Header, b}
}

func TestAnswerSaysWho(t *testing.T) {
	addr, _ := start(t)
	resp := get(t, http.DefaultClient, "http://"+addr+"/any/path?q=1")
	var got Answer
	if err := json.Unmarshal(resp.body, &got); err != nil {
		t.Fatal(err)
	}
	want := Answer{
		Cluster: "us", Workload: "checkout-0", Method: "GET", Path: "/any/path?q=1", Host: addr, Protocol: "HTTP/1.1",
		Headers: map[string]string{"User-Agent": "Go-http-client/1.1"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("answer (-want +got):\n%s", d)
	}
	if c, w := resp.header.Get(HeaderCluster), resp.header.Get(HeaderWorkload); c != "us" || w != "checkout-0" {
		t.Errorf("served by %q %q", c, w)
	}
}

// The answer shows who called, as the mesh has proved it.
func TestAnswerShowsTheCaller(t *testing.T) {
	addr, _ := start(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Isthmus-Caller", "spiffe://eu.test/ns/shop/sa/web")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var got Answer
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.Headers["Isthmus-Caller"] != "spiffe://eu.test/ns/shop/sa/web" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestPaths(t *testing.T) {
	addr, _ := start(t)
	for _, c := range []struct {
		path   string
		status int
	}{
		{"/status?code=503", 503},
		{"/status?code=x", 400},
		{"/slow?ms=1", 200},
		{"/slow?ms=-1", 400},
		{"/readyz", 200},
	} {
		if resp := get(t, http.DefaultClient, "http://"+addr+c.path); resp.status != c.status {
			t.Errorf("%s: %d, want %d", c.path, resp.status, c.status)
		}
	}
	payload := bytes.Repeat([]byte("isthmus "), 100_000)
	resp, err := http.Post("http://"+addr+"/echo", "text/plain", bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if echoed, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(echoed, payload) {
		t.Errorf("echo of %d bytes: %d bytes, %v", len(payload), len(echoed), err)
	}
}

func TestHTTP2(t *testing.T) {
	addr, _ := start(t)
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	if resp := get(t, &http.Client{Transport: transport}, "http://"+addr+"/"); resp.proto != "HTTP/2.0" {
		t.Errorf("spoke %s", resp.proto)
	}
}

func TestGRPCHealth(t *testing.T) {
	addr, _ := start(t)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	got, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || got.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", got, err)
	}
}

func TestWebSocket(t *testing.T) {
	addr, _ := start(t)
	c, err := websocket.Dial("ws://"+addr+"/ws", "", "http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, message := range []string{"one", strings.Repeat("x", 70_000)} {
		var echoed string
		if err := websocket.Message.Send(c, message); err != nil {
			t.Fatal(err)
		}
		if err := websocket.Message.Receive(c, &echoed); err != nil || echoed != message {
			t.Errorf("echo of %d bytes: %d bytes, %v", len(message), len(echoed), err)
		}
	}
}

func TestEcho(t *testing.T) {
	_, addr := start(t)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("echo: %q, %v", b, err)
	}
}
