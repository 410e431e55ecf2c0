// Package sample is the application that a playground's workloads run: it answers anything, and says who answered.
//
// One port speaks HTTP/1.1 and HTTP/2 without TLS, with gRPC health and a chat on it; another echoes bytes, and on UDP datagrams, each behind
// "CLUSTER WORKLOAD " of who answers. Every answer over HTTP carries
// Served-By-Cluster and Served-By-Workload. Paths with a meaning:
//
//	/echo          the request's body
//	/ws            a WebSocket that echoes messages (RFC 6455)
//	/slow?ms=N     the usual answer, N milliseconds later
//	/status?code=N the usual answer, with that status
//	/readyz        200; not a part of the mesh's readiness
//
// The internal/lab package runs it as a hidden verb of the isthmus command. Everything here is safe for concurrent use.
package sample

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/websocket"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// The headers that say who answered.
const (
	HeaderCluster  = "Served-By-Cluster"
	HeaderWorkload = "Served-By-Workload"
)

// Limits on what a request may cost. The sample is reached only by its sidecar and by its user.
const (
	maxEcho    = 64 << 20
	maxSlow    = time.Minute
	maxMessage = 1 << 20
	grace      = 2 * time.Second
)

// Config is what one copy is. All fields are required but Log.
type Config struct {
	Cluster  string
	Workload string
	HTTP     net.Listener // HTTP/1.1, h2c, gRPC; closed by Run
	TCP      net.Listener // echo; closed by Run
	// UDP echoes datagrams; closed by Run. Nil: none does.
	UDP net.PacketConn
	Log *slog.Logger // default: discarded
	// Requests has each request logged before it is answered, with the trace that it is in.
	Requests bool
}

// Answer is the JSON that any path is answered with.
type Answer struct {
	Cluster  string            `json:"cluster"`
	Workload string            `json:"workload"`
	Method   string            `json:"method"`
	Path     string            `json:"path"` // with the query
	Host     string            `json:"host"`
	Protocol string            `json:"protocol"` // "HTTP/1.1", "HTTP/2.0"
	Headers  map[string]string `json:"headers"`
}

// shown are the request headers that an answer repeats: who called, and which trace it is.
var shown = []string{
	"Isthmus-Caller", "User-Agent", "X-Request-Id", "X-Forwarded-For", "Traceparent", "Tracestate", "Baggage", "Via",
}

// Run serves until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveHTTP(ctx, cfg) })
	g.Go(func() error { return serveEcho(ctx, cfg.TCP) })
	if cfg.UDP != nil {
		g.Go(func() error { return serveDatagrams(ctx, cfg) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("sample: %w", err)
	}
	return nil
}

func serveHTTP(ctx context.Context, cfg Config) error {
	server := &http.Server{
		Handler:           newHandler(cfg),
		ReadHeaderTimeout: 10 * time.Second,
		Protocols:         new(http.Protocols),
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)

	g, serving := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(cfg.HTTP); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-serving.Done()
		patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if server.Shutdown(patient) != nil {
			return server.Close()
		}
		return nil
	})
	return g.Wait()
}

func newHandler(cfg Config) http.Handler {
	healthy := health.NewServer() // serving, for every service that is asked for by the empty name
	rpc := grpc.NewServer()
	healthv1.RegisterHealthServer(rpc, healthy)
	rpc.RegisterService(&grpc.ServiceDesc{ServiceName: "isthmus.sample.Talk", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{Chat}}, nil)

	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, r *http.Request, status int) {
		reply := Answer{
			Cluster: cfg.Cluster, Workload: cfg.Workload, Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host,
			Protocol: r.Proto, Headers: map[string]string{},
		}
		for _, name := range shown {
			if v := r.Header.Get(name); v != "" {
				reply.Headers[name] = v
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(reply) // the caller went away
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { answer(w, r, http.StatusOK) })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ready\n") })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		_, _ = io.Copy(w, http.MaxBytesReader(w, r.Body, maxEcho)) // what is read goes back; an error ends the answer early
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		ms, err := strconv.Atoi(r.URL.Query().Get("ms"))
		if err != nil || ms < 0 {
			answer(w, r, http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(min(time.Duration(ms)*time.Millisecond, maxSlow)):
			answer(w, r, http.StatusOK)
		case <-r.Context().Done():
		}
	})
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.URL.Query().Get("code"))
		if err != nil || code < 200 || code > 599 {
			code = http.StatusBadRequest
		}
		answer(w, r, code)
	})
	mux.Handle("/ws", websocket.Server{
		Handshake: func(*websocket.Config, *http.Request) error { return nil }, // any origin: there is nothing to protect
		Handler:   echoMessages,
	})

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cfg.Requests && r.URL.Path != "/readyz" {
			cfg.Log.InfoContext(r.Context(), "request", "direction", "served", "method", r.Method, "caller", r.Header.Get("Isthmus-Caller"), "trace_id", traceOf(r))
		}
		w.Header().Set(HeaderCluster, cfg.Cluster)
		w.Header().Set(HeaderWorkload, cfg.Workload)
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			rpc.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// Chat is a gRPC method that sends each message back, for as long as its caller likes: a stream both ways. Its messages are those of the health service,
// so that nothing has to be generated.
var Chat = grpc.StreamDesc{
	StreamName: "Chat", ServerStreams: true, ClientStreams: true,
	Handler: func(_ any, s grpc.ServerStream) error {
		for {
			m := new(healthv1.HealthCheckRequest)
			err := s.RecvMsg(m)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				err = s.SendMsg(m)
			}
			if err != nil {
				return err
			}
		}
	},
}

// ChatMethod is its name.
const ChatMethod = "/isthmus.sample.Talk/Chat"

// traceOf returns the ID of the trace that a request is in; empty: of none (W3C Trace Context, section 3.2).
func traceOf(r *http.Request) string {
	parts := strings.Split(r.Header.Get("Traceparent"), "-")
	if len(parts) < 4 {
		return ""
	}
	return parts[1]
}

func echoMessages(c *websocket.Conn) {
	c.MaxPayloadBytes = maxMessage
	for {
		var message string
		if websocket.Message.Receive(c, &message) != nil || websocket.Message.Send(c, message) != nil {
			return
		}
	}
}

// serveEcho sends back what it gets, connection by connection.
func serveEcho(ctx context.Context, l net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return g.Wait()
			}
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			closed := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer closed()
			defer func() { _ = c.Close() }()
			_, _ = io.Copy(c, c) // a broken connection is its caller's affair
			return nil
		})
	}
}

// maxDatagram is what a datagram of UDP may carry.
const maxDatagram = 65507

// serveDatagrams sends back what it gets, datagram by datagram, behind who it is.
func serveDatagrams(ctx context.Context, cfg Config) error {
	stop := context.AfterFunc(ctx, func() { _ = cfg.UDP.Close() })
	defer stop()
	who := []byte(cfg.Cluster + " " + cfg.Workload + " ")
	buffer := make([]byte, len(who)+maxDatagram)
	copy(buffer, who)
	for {
		n, from, err := cfg.UDP.ReadFrom(buffer[len(who):])
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // what the network said of an answer
			continue
		}
		_, _ = cfg.UDP.WriteTo(buffer[:min(len(who)+n, maxDatagram)], from) // lost, as any may be
	}
}
