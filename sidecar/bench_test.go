package sidecar

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/topology"
)

// BenchmarkPair sends small requests over keep-alive connections: straight to the application, and through the caller's and
// the called workload's sidecar. What is worth comparing is the ratio within one run.
//
//	go test -run '^$' -bench Pair -cpu 1,2 ./sidecar
func BenchmarkPair(b *testing.B) {
	w := newWorld(b)
	w.quiet = true
	_, here := serveApp(b, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "2")
		_, _ = io.WriteString(w, "ok")
	})
	near := w.server(eu, "checkout", topology.HTTP, here)
	w.gateway("gateway-0", to(near))
	local := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil)
	far := w.caller(view{remotes: []topology.Remote{remote(1, near)}}, nil)
	for _, c := range []struct{ name, address, target string }{
		{"direct", here.String(), "/"},
		{"own cluster", local.proxy.Host, checkoutURL},
		{"another cluster", far.proxy.Host, checkoutURL},
	} {
		for _, connections := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/c=%d", c.name, connections), func(b *testing.B) {
				b.SetParallelism(connections)
				b.ReportAllocs()
				request := []byte("GET " + c.target + " HTTP/1.1\r\nHost: checkout.shop.svc.clusterset.local\r\n\r\n")
				b.RunParallel(func(pb *testing.PB) {
					conn, err := net.Dial("tcp", c.address)
					if err != nil {
						b.Error(err)
						return
					}
					defer func() { _ = conn.Close() }()
					r := bufio.NewReader(conn)
					for pb.Next() {
						if _, err := conn.Write(request); err != nil {
							b.Error(err)
							return
						}
						resp, err := http.ReadResponse(r, nil)
						if err != nil || resp.StatusCode != http.StatusOK {
							b.Errorf("got %v, %v", resp, err)
							return
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
				})
			})
		}
	}
}

// BenchmarkOpaque moves bulk through both sidecars and back.
func BenchmarkOpaque(b *testing.B) {
	w := newWorld(b)
	w.quiet = true
	near := w.server(eu, "checkout", topology.TCP, tcpApp(b, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }))
	_, ways := w.opaqueCaller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}})
	conn := ways["local listener"]()
	defer func() { _ = conn.Close() }()
	const size = 64 << 10
	sent, got := []byte(strings.Repeat("x", size)), make([]byte, size)
	b.SetBytes(2 * size)
	for b.Loop() {
		if _, err := conn.Write(sent); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, got); err != nil {
			b.Fatal(err)
		}
	}
}
