package lab_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/isthmus-mesh/isthmus/internal/lab/sample"
)

func (m *mesh) call(ts *testscript.TestScript, args []string) error {
	text, err := m.output(args)
	_, _ = io.WriteString(ts.Stdout(), text)
	return err
}

// request is one call of a script.
type request struct {
	from    string
	url     *url.URL
	headers http.Header
	body    string
}

// output makes one call and returns what a script sees of it. The error is one of the script; a call that fails is output.
func (m *mesh) output(args []string) (string, error) {
	r := request{headers: http.Header{}}
	flags := flag.NewFlagSet("call", flag.ContinueOnError)
	flags.Func("H", "header", func(s string) error {
		name, value, _ := strings.Cut(s, ":")
		r.headers.Add(name, strings.TrimSpace(value))
		return nil
	})
	flags.StringVar(&r.body, "d", "", "body of a POST, or message")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	if flags.NArg() != 2 {
		return "", errUsage
	}
	u, err := url.Parse(flags.Arg(1))
	if err != nil {
		return "", err
	}
	r.from, r.url = flags.Arg(0), u
	if _, err = m.pg.ProxyOf(r.from); err != nil {
		return "", err
	}
	do, ok := map[string]func(context.Context, request) (string, error){
		"http": m.callHTTP, "h2c": m.callH2C, "grpc": m.callGRPC, "ws": m.callWebSocket, "tcp": m.callTCP, "udp": m.callUDP,
	}[u.Scheme]
	if !ok {
		return "", fmt.Errorf("no scheme %q", u.Scheme)
	}
	ctx, cancel := context.WithTimeout(m.ctx, 30*time.Second)
	defer cancel()
	text, err := do(ctx, r)
	if err != nil {
		return fmt.Sprintf("error: %v\n", err), nil
	}
	return text, nil
}

func (m *mesh) callHTTP(ctx context.Context, r request) (string, error) {
	proxy, err := m.pg.ProxyOf(r.from)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy})}
	defer transport.CloseIdleConnections()
	return roundTrip(ctx, transport, r)
}

// callH2C speaks HTTP/2 without TLS through a tunnel: the one way in which an HTTP/2 client uses a proxy.
func (m *mesh) callH2C(ctx context.Context, r request) (string, error) {
	u := *r.url
	u.Scheme = "http"
	r.url = &u
	transport := &http.Transport{
		Protocols:   new(http.Protocols),
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) { return m.tunnel(r.from, address) },
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	return roundTrip(ctx, transport, r)
}

func roundTrip(ctx context.Context, transport http.RoundTripper, r request) (string, error) {
	method := http.MethodGet
	if r.body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, r.url.String(), strings.NewReader(r.body))
	if err != nil {
		return "", err
	}
	req.Header = r.headers
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s %s %s\n%s\n", resp.StatusCode, orDash(resp.Header.Get(sample.HeaderCluster)),
		orDash(resp.Header.Get(sample.HeaderWorkload)), resp.Proto, body), err
}

func (m *mesh) callGRPC(ctx context.Context, r request) (string, error) {
	conn, err := grpc.NewClient("passthrough:///"+r.url.Host, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(_ context.Context, address string) (net.Conn, error) { return m.tunnel(r.from, address) }))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	var header metadata.MD
	got, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.Header(&header))
	if err != nil {
		return "", err
	}
	first := func(name string) string { return orDash(strings.Join(header.Get(name), ",")) }
	return fmt.Sprintf("%s %s %s grpc\n", got.GetStatus(), first(sample.HeaderCluster), first(sample.HeaderWorkload)), nil
}

// callWebSocket asks the proxy to carry the upgrade itself, as it would any request of HTTP/1.1.
func (m *mesh) callWebSocket(ctx context.Context, r request) (string, error) {
	c, err := m.tunnel(r.from, withPort(r.url))
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(deadline)
	}
	cfg, err := websocket.NewConfig(r.url.String(), "http://localhost/")
	if err != nil {
		return "", err
	}
	ws, err := websocket.NewClient(cfg, c)
	if err != nil {
		return "", err
	}
	for _, said := range []string{r.body, strings.Repeat("x", 70_000)} {
		var heard string
		if err := websocket.Message.Send(ws, said); err != nil {
			return "", err
		}
		if err := websocket.Message.Receive(ws, &heard); err != nil {
			return "", err
		}
		if heard != said {
			return "", fmt.Errorf("said %d bytes, heard %d", len(said), len(heard))
		}
	}
	return "101 - - websocket\n" + r.body + "\n", ws.Close()
}

func (m *mesh) callTCP(_ context.Context, r request) (string, error) {
	c, err := m.tunnel(r.from, r.url.Host)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, r.body); err != nil {
		return "", err
	}
	heard := make([]byte, len(r.body))
	if _, err := io.ReadFull(c, heard); err != nil {
		return "", err
	}
	return "- - - tcp\n" + string(heard) + "\n", nil
}

// callUDP sends a datagram, again and again until it is answered: any may be lost. The listener knows to which service.
func (m *mesh) callUDP(ctx context.Context, r request) (string, error) {
	address, err := m.pg.DatagramsOf(r.from)
	if err != nil {
		return "", err
	}
	c, err := net.Dial("udp", address)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	m.outside[c.LocalAddr().(*net.UDPAddr).IP.String()] = true // it is UDP's
	heard := make([]byte, 1<<16)
	for ctx.Err() == nil {
		if _, err := io.WriteString(c, r.body); err != nil {
			return "", err
		}
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := c.Read(heard)
		if err != nil {
			continue
		}
		who := strings.SplitN(string(heard[:n]), " ", 3)
		return fmt.Sprintf("- %s %s udp\n%s\n", who[0], who[1], who[2]), nil
	}
	return "", ctx.Err()
}

// tunnel opens a connection to host:port by CONNECT, as a workload does for what is not HTTP.
func (m *mesh) tunnel(from, address string) (net.Conn, error) {
	proxy, err := m.pg.ProxyOf(from)
	if err != nil {
		return nil, err
	}
	c, err := net.DialTimeout("tcp", proxy, 10*time.Second)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err = fmt.Fprintf(c, "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", address); err != nil {
		_ = c.Close()
		return nil, err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // after it comes the tunnel
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("CONNECT %s: %w", address, err)
	}
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		_ = c.Close()
		return nil, fmt.Errorf("CONNECT %s: %s: %s", address, resp.Status, body)
	}
	_ = c.SetDeadline(time.Time{})
	return &tunnelled{Conn: c, r: r}, nil
}

// tunnelled is a connection of which the reader may hold the first bytes.
type tunnelled struct {
	net.Conn
	r *bufio.Reader
}

func (t *tunnelled) Read(b []byte) (int, error) { return t.r.Read(b) }

func withPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return u.Host + ":80"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
