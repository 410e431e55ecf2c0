package sidecar

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/topology"
)

// chat is a gRPC method that says back what it hears, for as long as it is spoken to.
var chat = grpc.StreamDesc{
	StreamName: "Chat", ServerStreams: true, ClientStreams: true,
	Handler: func(_ any, s grpc.ServerStream) error {
		for {
			m := new(grpc_health_v1.HealthCheckRequest)
			if err := s.RecvMsg(m); err != nil {
				return err
			}
			if err := s.SendMsg(m); err != nil {
				return err
			}
		}
	},
}

// serveChat is an application that chats.
func serveChat(t *testing.T) net.Listener {
	t.Helper()
	ln := listenTCP(t)
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Talk", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{chat}}, nil)
	served := make(chan error)
	go func() { served <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return ln
}

// talk is a stream of an application beside s.
type talk struct {
	grpc.ClientStream
	t  *testing.T
	cc *grpc.ClientConn
}

func (s *side) talk(t *testing.T) *talk {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///checkout", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return s.through(ctx, "", "checkout.shop.svc.clusterset.local:80")
		}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() { cancel(); _ = cc.Close() })
	stream, err := cc.NewStream(ctx, &chat, "/test.Talk/Chat")
	if err != nil {
		t.Fatal(err)
	}
	return &talk{stream, t, cc}
}

// stopAside begins to stop a sidecar.
func (s *side) stopAside(t *testing.T) {
	t.Helper()
	var stopping sync.WaitGroup
	stopping.Go(func() { _ = s.stop() }) // the world looks at what comes of it
	t.Cleanup(stopping.Wait)
}

// echoes says something, and returns why it was not said back.
func (k *talk) echoes() error {
	if err := k.SendMsg(&grpc_health_v1.HealthCheckRequest{Service: "hello"}); err != nil {
		return err
	}
	var m grpc_health_v1.HealthCheckRequest
	if err := k.RecvMsg(&m); err != nil {
		return err
	}
	if m.GetService() != "hello" {
		return errors.New("heard " + m.GetService())
	}
	return nil
}

// ends waits until the stream ends, which has to be with a status of the mesh that says it may be tried again.
func (k *talk) ends(code Code) {
	k.t.Helper()
	var m grpc_health_v1.HealthCheckRequest
	err := k.RecvMsg(&m)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), string(code)) {
		k.t.Errorf("the stream ended with %v, want UNAVAILABLE and %s", err, code)
	}
}

// TestStreamsEndWithNotice: whatever goes away, a gRPC stream that crosses it goes on for the grace, and ends with a status by which its client may open it anew.
func TestStreamsEndWithNotice(t *testing.T) {
	type stage struct {
		caller, far *side
		gateway     *fakeGateway
		offset      *atomic.Int64
	}
	for name, c := range map[string]struct {
		code Code
		end  func(t *testing.T, s stage, k *talk)
	}{
		"the caller's sidecar stops": {CodeNotReady, func(t *testing.T, s stage, k *talk) {
			t.Helper()
			s.caller.config.DrainGrace = 3 * time.Second
			s.caller.stopAside(t)
			waitFor(t, "the client is told to use another connection", func() bool { return k.cc.GetState() != connectivity.Ready })
			if err := k.echoes(); err != nil {
				t.Errorf("within the grace: %v", err)
			}
		}},
		"the called sidecar stops": {CodeNotReady, func(t *testing.T, s stage, k *talk) {
			t.Helper()
			s.far.config.DrainGrace = 2 * time.Second
			s.far.stopAside(t)
			if err := k.echoes(); err != nil {
				t.Errorf("within the grace: %v", err)
			}
		}},
		"the way breaks": {CodeAnswerLost, func(_ *testing.T, s stage, _ *talk) { s.gateway.cut() }},
		"the copy is drained": {CodeMoved, func(t *testing.T, s stage, k *talk) {
			t.Helper()
			w := s.caller.w
			other := w.server(us, "checkout", topology.GRPC, addrOf(serveChat(t)))
			drained := w.snapshot(view{protocol: topology.GRPC, endpoints: []topology.Endpoint{other.endpoint("near")}, remotes: []topology.Remote{remote(1, s.far)}})
			drained.Service(checkout).Remotes[0].Drain = &topology.Drain{Began: time.Now(), Over: time.Second}
			s.caller.snapshots.Store(drained)
			waitFor(t, "the drain is seen", func() bool {
				s.caller.outbound.streams.mu.Lock()
				defer s.caller.outbound.streams.mu.Unlock()
				for _, since := range s.caller.outbound.streams.open {
					return !since.IsZero()
				}
				return false
			})
			if err := k.echoes(); err != nil {
				t.Errorf("within the grace: %v", err)
			}
			s.offset.Store(int64(time.Minute))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var offset atomic.Int64
			far := w.server(us, "checkout", topology.GRPC, addrOf(serveChat(t)))
			g := w.gateway("gateway-0", to(far))
			caller := w.caller(view{protocol: topology.GRPC, remotes: []topology.Remote{remote(1, far)}}, func(c *Config) {
				c.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
			})
			k := caller.talk(t)
			if err := k.echoes(); err != nil {
				t.Fatal(err)
			}
			c.end(t, stage{caller, far, g, &offset}, k)
			k.ends(c.code)
		})
	}
}

// TestDrainedStreamsStay: where there is no other copy, a stream to one that is drained is not ended.
func TestDrainedStreamsStay(t *testing.T) {
	w := newWorld(t)
	var offset atomic.Int64
	far := w.server(us, "checkout", topology.GRPC, addrOf(serveChat(t)))
	w.gateway("gateway-0", to(far))
	v := view{protocol: topology.GRPC, remotes: []topology.Remote{remote(1, far)}}
	caller := w.caller(v, func(c *Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	})
	k := caller.talk(t)
	if err := k.echoes(); err != nil {
		t.Fatal(err)
	}
	drained := w.snapshot(v)
	drained.Service(checkout).Remotes[0].Drain = &topology.Drain{Began: time.Now()}
	caller.snapshots.Store(drained)
	caller.outbound.endDrained()
	offset.Store(int64(time.Minute))
	caller.outbound.endDrained()
	if err := k.echoes(); err != nil {
		t.Errorf("the only copy there is: %v", err)
	}
}

// TestMessages: a stream is divided as gRPC says, wherever reads cut it.
func TestMessages(t *testing.T) {
	message := func(n int) []byte {
		b := make([]byte, 5+n)
		binary.BigEndian.PutUint32(b[1:], uint32(n))
		for i := range n {
			b[5+i] = 0xff
		}
		return b
	}
	ends := map[int]bool{0: true}
	var all []byte
	for _, n := range []int{0, 1, 300, 0, 70_000} {
		all = append(all, message(n)...)
		ends[len(all)] = true
	}
	for _, step := range []int{1, 3, 7, 4096} {
		var m messages
		for at := 0; at < len(all); {
			n := min(step, len(all)-at)
			m.pass(all[at : at+n])
			at += n
			if m.between() != ends[at] {
				t.Fatalf("reads of %d bytes: after %d, between messages: %t", step, at, m.between())
			}
		}
	}
}

// TestMessageCutInTwo: a stream that breaks in the midst of a message is broken off: no status may make half a message look whole.
func TestMessageCutInTwo(t *testing.T) {
	w := newWorld(t)
	c, g := w.across(topology.GRPC, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		_, _ = w.Write([]byte{0, 0, 0, 0, 9, 'h', 'a'})
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, checkoutURL, strings.NewReader(""))
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := h2c(t, c.through).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	begun := make([]byte, 7)
	if _, err := resp.Body.Read(begun); err != nil {
		t.Fatal(err)
	}
	g.cut()
	if _, err := resp.Body.Read(begun); err == nil || err.Error() == "EOF" {
		t.Errorf("it ended as if it was whole: %v, %v", err, resp.Trailer)
	}
}

// FuzzMessages: how the bytes of a stream come changes nothing of where its messages end.
func FuzzMessages(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x01x"), uint(3))
	f.Add([]byte("\x01\xff\xff\xff\xffx"), uint(5))
	f.Fuzz(func(t *testing.T, p []byte, at uint) {
		var whole, parts messages
		whole.pass(p)
		n := int(at % uint(len(p)+1))
		parts.pass(p[:n])
		parts.pass(p[n:])
		if whole != parts {
			t.Errorf("%+v, in two parts %+v", whole, parts)
		}
	})
}
