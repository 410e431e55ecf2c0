package configstream_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
)

func TestWhoIsNotAdmittedIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*configstream.ServerConfig)
		first  *configv1.Request
		want   codes.Code
	}{
		"nobody": {
			change: func(cfg *configstream.ServerConfig) {
				cfg.Peer = func(context.Context) (spiffeid.ID, error) { return spiffeid.ID{}, errors.New("no certificate") }
			},
			want: codes.Unauthenticated,
		},
		"not what it says": {
			change: func(cfg *configstream.ServerConfig) {
				cfg.Admit = func(spiffeid.ID, *configv1.Hello) (func(string) bool, error) { return nil, errors.New("not yours") }
			},
			first: &configv1.Request{Message: &configv1.Request_Hello{Hello: hello}},
			want:  codes.PermissionDenied,
		},
		"no program":    {first: &configv1.Request{Message: &configv1.Request_Hello{Hello: &configv1.Hello{}}}, want: codes.InvalidArgument},
		"no hello":      {first: &configv1.Request{Message: &configv1.Request_Subscribe{}}, want: codes.InvalidArgument},
		"empty":         {first: &configv1.Request{}, want: codes.InvalidArgument},
		"silent":        {want: codes.DeadlineExceeded},
		"bad subscribe": {first: &configv1.Request{Message: &configv1.Request_Hello{Hello: &configv1.Hello{Program: "node", Workload: "n", Services: []string{"?"}}}}, want: codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t, c.change)
				p.server.Set(world())
				stream := openStream(t, p)
				if c.first != nil {
					if err := stream.Send(c.first); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := stream.Recv(); status.Code(err) != c.want {
					t.Errorf("error %v, want %v", err, c.want)
				}
			})
		})
	}
}

func TestASecondHelloEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world())
		stream := rawStream(t, p)
		if err := stream.Send(&configv1.Request{Message: &configv1.Request_Hello{Hello: hello}}); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := stream.Recv(); err != nil {
				if status.Code(err) != codes.InvalidArgument {
					t.Errorf("error %v, want InvalidArgument", err)
				}
				return
			}
		}
	})
}

func TestEagerClientsAreReadSlower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world())
		stream := rawStream(t, p)
		start := time.Now()
		for range 1000 {
			if err := stream.Send(&configv1.Request{Message: &configv1.Request_Report{Report: &configv1.Report{
				Links: []*configv1.LinkReport{{State: "up"}},
			}}}); err != nil {
				t.Fatal(err)
			}
		}
		count := 0
		for count < 1000 {
			time.Sleep(100 * time.Millisecond)
			for _, e := range p.takeEvents() {
				if e == "report up" {
					count++
				}
			}
		}
		if took := time.Since(start); took < 15*time.Second || took > time.Minute {
			t.Errorf("1000 reports were taken in %v, want about 18 s", took)
		}
	})
}

func TestTooManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, func(cfg *configstream.ServerConfig) { cfg.MaxStreams = 1 })
		p.server.Set(world())
		rawStream(t, p)
		synctest.Wait()
		if _, err := openStream(t, p).Recv(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("error %v, want ResourceExhausted", err)
		}
	})
}

// gatekeeper is an Admit whose word can be changed.
type gatekeeper struct {
	mu  sync.Mutex
	err error // guarded by mu
}

func (g *gatekeeper) admit(spiffeid.ID, *configv1.Hello) (func(string) bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return func(string) bool { return true }, g.err
}

func (g *gatekeeper) say(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

type receiver interface {
	Recv() (*configv1.Response, error)
}

// next returns the next cut of a stream, its keys, or with which code the stream ended.
func next(t *testing.T, stream receiver) (keys string, code codes.Code) {
	t.Helper()
	for {
		m, err := stream.Recv()
		if err != nil {
			return keys, status.Code(err)
		}
		for _, r := range m.GetUpsert() {
			keys += r.GetKey() + " "
		}
		if m.GetComplete() {
			return keys, codes.OK
		}
	}
}

func TestWhoIsNoLongerAdmittedIsTold(t *testing.T) {
	for name, change := range map[string]func(*configstream.Server){
		"a new World":  func(s *configstream.Server) { s.Set(world(gateway("gateway-0"), gateway("gateway-1"))) },
		"nothing else": (*configstream.Server).Readmit,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var keeper gatekeeper
				p := newPlane(t, func(cfg *configstream.ServerConfig) { cfg.Admit = keeper.admit })
				p.server.Set(world(gateway("gateway-0")))
				stream := rawStream(t, p)
				if keys, code := next(t, stream); keys != "gateway/gateway-0 " || code != codes.OK {
					t.Fatalf("first %q, %v", keys, code)
				}
				keeper.say(errors.New("removed"))
				change(p.server)
				if keys, code := next(t, stream); keys != "" || code != codes.PermissionDenied {
					t.Errorf("%q and %v, want nothing and PermissionDenied", keys, code)
				}
				synctest.Wait()
				if n := len(p.server.Sessions()); n != 0 {
					t.Errorf("%d sessions, want none", n)
				}
			})
		})
	}
}

func TestWhatIsUndecidedEndsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keeper gatekeeper
		p := newPlane(t, func(cfg *configstream.ServerConfig) { cfg.Admit = keeper.admit })
		p.server.Set(world())
		stream := rawStream(t, p)
		if _, code := next(t, stream); code != codes.OK {
			t.Fatal(code)
		}
		keeper.say(fmt.Errorf("not read yet: %w", configstream.ErrUndecided))
		p.server.Readmit()
		synctest.Wait()
		p.server.Set(world(gateway("gateway-0")))
		if keys, code := next(t, stream); keys != "gateway/gateway-0 " || code != codes.OK {
			t.Errorf("%q and %v, want the gateway", keys, code)
		}
		if _, code := next(t, rawStream(t, p)); code != codes.Unavailable {
			t.Errorf("a new stream: %v, want Unavailable", code)
		}
	})
}

func TestTheNewestStreamsOfAProgramStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world())
		const most, more = 3, 4
		var streams []receiver
		for range most + more {
			stream := rawStream(t, p)
			if _, code := next(t, stream); code != codes.OK {
				t.Fatal(code)
			}
			streams = append(streams, stream)
			synctest.Wait()
			if n := len(p.server.Sessions()); n > most {
				t.Errorf("%d streams of one program, want at most %d", n, most)
			}
		}
		p.server.Set(world(gateway("gateway-0")))
		for i, stream := range streams {
			want := codes.ResourceExhausted
			if i >= more {
				want = codes.OK
			}
			if _, code := next(t, stream); code != want {
				t.Errorf("stream %d: %v, want %v", i, code, want)
			}
		}
	})
}

func TestAHelloIsBoundByWhoSaysIt(t *testing.T) {
	have := func(n int) (out []*configv1.Have) {
		for i := range n {
			out = append(out, &configv1.Have{Key: fmt.Sprintf("bundle/%d", i)})
		}
		return out
	}
	for name, c := range map[string]struct {
		hello *configv1.Hello
		want  codes.Code
	}{
		"a gateway that calls a service": {&configv1.Hello{Program: "gateway", Gateway: &configv1.Gateway{Id: "g"}, Services: []string{"a.b"}}, codes.InvalidArgument},
		"a gateway that holds much":      {&configv1.Hello{Program: "gateway", Gateway: &configv1.Gateway{Id: "g"}, Have: have(12_000)}, codes.OK},
		"a gateway that holds more":      {&configv1.Hello{Program: "gateway", Gateway: &configv1.Gateway{Id: "g"}, Have: have(12_001)}, codes.InvalidArgument},
		"a sidecar that holds more":      {&configv1.Hello{Program: "sidecar", Workload: "shop/a", Have: have(12_001)}, codes.InvalidArgument},
		"a node proxy":                   {&configv1.Hello{Program: "node", Workload: "n", Have: have(30_000)}, codes.OK},
		"a node proxy that holds more":   {&configv1.Hello{Program: "node", Workload: "n", Have: have(30_001)}, codes.InvalidArgument},
		"a story":                        {&configv1.Hello{Program: "node", Workload: "n", Version: strings.Repeat("x", 10<<10)}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t, nil)
				p.server.Set(world())
				stream := openStream(t, p)
				if err := stream.Send(&configv1.Request{Message: &configv1.Request_Hello{Hello: c.hello}}); err != nil {
					t.Fatal(err)
				}
				if _, code := next(t, stream); code != c.want {
					t.Errorf("%v, want %v", code, c.want)
				}
			})
		})
	}
}

// TestHellosOfAnIdentityTakeTurns: who is silent in its turn costs others of its identity a wait, and nobody else anything.
func TestHellosOfAnIdentityTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := spiffeid.RequireFromString("spiffe://eu.example/ns/shop/sa/other")
		var mu sync.Mutex
		who := peer // guarded by mu
		p := newPlane(t, func(cfg *configstream.ServerConfig) {
			cfg.Peer = func(context.Context) (spiffeid.ID, error) {
				mu.Lock()
				defer mu.Unlock()
				return who, nil
			}
		})
		p.server.Set(world())
		const turns = 16
		for range turns {
			openStream(t, p)
		}
		synctest.Wait()
		time.Sleep(moment)
		began := time.Now()
		late := rawStream(t, p)
		synctest.Wait()
		mu.Lock()
		who = other
		mu.Unlock()
		if _, code := next(t, rawStream(t, p)); code != codes.OK || time.Since(began) != 0 {
			t.Errorf("another identity: %v after %v, want an answer at once", code, time.Since(began))
		}
		if _, code := next(t, late); code != codes.OK || time.Since(began) == 0 {
			t.Errorf("one more: %v after %v, want an answer once a turn is over", code, time.Since(began))
		}
	})
}

// TestWhoHoldsMoreThanMayBeSaidAsksForAllOfIt: a program comes back, however much it holds.
func TestWhoHoldsMoreThanMayBeSaidAsksForAllOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		var resources []*configv1.Resource
		for i := range 12_001 { // more than a sidecar's Hello may name
			resources = append(resources, gateway(fmt.Sprintf("gateway-%d", i)))
		}
		p.server.Set(world(resources...))
		c := startClient(t, p, nil)
		synctest.Wait()
		if !c.Connected() {
			t.Fatalf("not connected: %v", c.Problems())
		}
		p.stop()
		synctest.Wait()
		p.start()
		time.Sleep(10 * moment)
		synctest.Wait()
		if n := len(c.Snapshots().Load().Gateways()); !c.Connected() || n != len(resources) {
			t.Errorf("connected %t with %d gateways: %v", c.Connected(), n, c.Problems())
		}
	})
}
