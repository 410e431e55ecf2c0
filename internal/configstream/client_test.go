package configstream_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
)

// script is a control plane that says what it is told to, to every client anew.
type script struct {
	configv1.UnimplementedConfigServer
	say [][]*configv1.Response // by stream; the last one repeats

	mu    sync.Mutex
	heard []*configv1.Hello // guarded by mu
}

func (s *script) hellos() []*configv1.Hello {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard
}

func (s *script) Stream(rpc grpc.BidiStreamingServer[configv1.Request, configv1.Response]) error {
	r, err := rpc.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	lines := s.say[min(len(s.heard), len(s.say)-1)]
	s.heard = append(s.heard, r.GetHello())
	s.mu.Unlock()
	for _, m := range lines {
		if err := rpc.Send(m); err != nil {
			return err
		}
	}
	for {
		if _, err := rpc.Recv(); err != nil {
			return err
		}
	}
}

func newScript(tb testing.TB, say ...[]*configv1.Response) (*plane, *script) {
	tb.Helper()
	p := newPlane(tb, nil)
	p.stop()
	s := &script{say: say}
	p.configs = s
	p.start()
	return p, s
}

func TestAMalformedCutIsRefusedAsAWhole(t *testing.T) {
	good := &configv1.Response{Revision: 1, Upsert: []*configv1.Resource{service(t, "checkout.shop", 1)}, Complete: true}
	malformed := proto.CloneOf(service(t, "checkout.shop", 9))
	malformed.GetService().Ports[0].Port = 0
	for what, bad := range map[string][]*configv1.Response{
		"resource":    {{Revision: 2, Upsert: []*configv1.Resource{service(t, "new.shop", 1), malformed}, Complete: true}},
		"in a part":   {{Revision: 2, Upsert: []*configv1.Resource{malformed}}, {Revision: 2, Upsert: []*configv1.Resource{service(t, "new.shop", 1)}, Complete: true}},
		"absent":      {{Revision: 2, Remove: []string{"service/checkout.shop"}, Absent: []string{"Not a name"}, Complete: true}},
		"mixed":       {{Revision: 2, Remove: []string{"service/checkout.shop"}}, {Revision: 3, Complete: true}},
		"incomplete":  {{Revision: 2, Remove: []string{"service/checkout.shop"}}},
		"two persons": {{Revision: 2, Upsert: []*configv1.Resource{self("sidecar/shop/a"), self("sidecar/shop/b")}, Complete: true}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, s := newScript(t, append([]*configv1.Response{good}, bad...), []*configv1.Response{{Revision: 4, Complete: true}})
				c := startClient(t, p, nil)
				if what == "incomplete" {
					time.Sleep(moment)
					c.wantHolds(t, "checkout.shop=1 ")
					return
				}
				for len(c.Problems()) == 0 {
					<-c.Status().Changed()
				}
				c.wantHolds(t, "checkout.shop=1 ")
				if problems := fmt.Sprint(c.Problems()); !strings.Contains(problems, "refused") {
					t.Errorf("problems %s, want it said that a configuration was refused", problems)
				}
				time.Sleep(10 * moment) // the next stream is well
				c.wantHolds(t, "checkout.shop=1 ")
				if problems := c.Problems(); len(problems) > 0 {
					t.Errorf("problems %v, after a good cut", problems)
				}
				if have := s.hellos()[1].GetHave(); len(have) != 1 || have[0].GetKey() != "service/checkout.shop" {
					t.Errorf("the second hello has %v, want what is in force", have)
				}
			})
		})
	}
}

func self(receiver string) *configv1.Resource {
	return &configv1.Resource{Key: "self/" + receiver, Body: &configv1.Resource_Self{Self: &configv1.Self{Cluster: "eu", TrustDomain: "eu.example"}}}
}

func TestARefusingClientDoesNotHammer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := newScript(t, []*configv1.Response{{Upsert: []*configv1.Resource{{Key: "service/a.b"}}, Complete: true}})
		c := startClient(t, p, nil)
		time.Sleep(10 * time.Minute)
		if n := len(s.hellos()); n < 100 || n > 260 {
			t.Errorf("%d streams in ten minutes", n)
		}
		c.stop()
	})
}

func TestUnknownKindsArePassedOverAndRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rumour := &configv1.Resource{Key: "rumour/a", Version: []byte("1")}
		p, s := newScript(t, []*configv1.Response{{Upsert: []*configv1.Resource{rumour, service(t, "a.b", 1)}, Complete: true}})
		c := startClient(t, p, nil)
		c.wantHolds(t, "a.b=1 ")
		p.stop()
		p.start()
		time.Sleep(10 * moment)
		if have := s.hellos()[1].GetHave(); len(have) != 2 {
			t.Errorf("the second hello has %v, want both", have)
		}
	})
}

func stateFile(t *testing.T) (string, func(*configstream.ClientConfig)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.state")
	return file, func(cfg *configstream.ClientConfig) { cfg.StateFile = file }
}

// fill lets a client learn something that it keeps on disk.
func fill(t *testing.T, p *plane, keep func(*configstream.ClientConfig)) {
	t.Helper()
	c := startClient(t, p, keep)
	c.subscribe(t, "checkout.shop", "nowhere.shop")
	c.stop()
	p.sent()
}

func TestAStartWithoutControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, keep := stateFile(t)
		p := newPlane(t, nil)
		p.server.Set(world(gateway("gateway-0"), service(t, "checkout.shop", 1)))
		fill(t, p, keep)
		p.stop()

		c := startClient(t, p, keep)
		c.wantHolds(t, "checkout.shop=1 ")
		if c.Bundles().Load() == nil {
			t.Error("no bundles, want an empty set")
		}
		c.subscribe(t, "checkout.shop") // known: no waiting
		if err := c.Subscribe(t.Context(), name(t, "nowhere.shop")); !errors.Is(err, configstream.ErrUnavailable) {
			t.Errorf("a service that may exist by now: error %v, want ErrUnavailable", err)
		}
		p.server.Set(world(gateway("gateway-0"), service(t, "checkout.shop", 1), service(t, "nowhere.shop", 2)))
		p.start()
		time.Sleep(10 * moment)
		p.wantSent("+service/nowhere.shop") // the subscriptions were kept, the rest was not sent again
		c.wantHolds(t, "checkout.shop=1 nowhere.shop=2 ")
	})
}

func TestAnotherVersionAsksForAllOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, keep := stateFile(t)
		p := newPlane(t, nil)
		p.server.Set(world(gateway("gateway-0"), service(t, "checkout.shop", 1)))
		fill(t, p, keep)
		p.server.Set(world(service(t, "checkout.shop", 1)))
		c := startClient(t, p, func(cfg *configstream.ClientConfig) {
			keep(cfg)
			cfg.Hello = proto.CloneOf(hello)
			cfg.Hello.Version = "newer"
		})
		c.wantHolds(t, "checkout.shop=1 ")
		p.wantSent("+service/checkout.shop", "-gateway/gateway-0", "?nowhere.shop")
	})
}

func TestAStateFileThatCantBeUsedIsSetAside(t *testing.T) {
	for what, spoil := range map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut":       func(b []byte) []byte { return b[:len(b)-1] },
		"bit":       func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"checksum":  func(b []byte) []byte { b[20] ^= 1; return b },
		"format":    func(b []byte) []byte { b[17]++; return b },
		"of other":  func([]byte) []byte { return []byte("apiVersion: v1\nkind: Service\n" + strings.Repeat("#", 100)) },
		"unchanged": func(b []byte) []byte { return b },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				file, keep := stateFile(t)
				p := newPlane(t, nil)
				p.server.Set(world(service(t, "checkout.shop", 1)))
				fill(t, p, keep)
				p.stop()
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, spoil(b), 0o600); err != nil {
					t.Fatal(err)
				}
				c := startClient(t, p, keep)
				if what == "unchanged" {
					c.wantHolds(t, "checkout.shop=1 ")
					return
				}
				c.wantHolds(t, "nothing")
				if _, err := os.Stat(file + ".corrupt"); err != nil {
					t.Errorf("not set aside: %v", err)
				}
				p.start()
				time.Sleep(10 * moment)
				c.subscribe(t, "checkout.shop")
				c.wantHolds(t, "checkout.shop=1 ")
				c.stop()
				if _, err := os.Stat(file); err != nil {
					t.Errorf("not written anew: %v", err)
				}
			})
		})
	}
}

func TestTheStateOfAnotherProgramIsNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, keep := stateFile(t)
		p := newPlane(t, nil)
		p.server.Set(world(service(t, "checkout.shop", 1)))
		fill(t, p, keep)
		p.stop()
		c := startClient(t, p, func(cfg *configstream.ClientConfig) {
			keep(cfg)
			cfg.Hello = proto.CloneOf(hello)
			cfg.Hello.Workload = "shop/cart-0"
		})
		c.wantHolds(t, "nothing")
	})
}

func TestTheStateIsWrittenWithRestAndIsNeverOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file, keep := stateFile(t)
		p := newPlane(t, nil)
		p.server.Set(world(service(t, "checkout.shop", 0)))
		c := startClient(t, p, keep)
		c.subscribe(t, "checkout.shop")
		writes, last := 0, time.Time{}
		for n := range 100 {
			p.server.Set(world(service(t, "checkout.shop", n+1)))
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if info, err := os.Stat(file); err == nil && !info.ModTime().Equal(last) {
				writes, last = writes+1, info.ModTime()
			}
		}
		if writes < 5 || writes > 11 {
			t.Errorf("%d writes in ten seconds, want about ten", writes)
		}
		c.stop()
		p.stop()
		startClient(t, p, keep).wantHolds(t, "checkout.shop=100 ")
	})
}

func TestAStateThatCantBeWrittenDoesNoHarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world(service(t, "checkout.shop", 1)))
		c := startClient(t, p, func(cfg *configstream.ClientConfig) {
			cfg.StateFile = filepath.Join(t.TempDir(), "no", "such", "directory", "config.state")
		})
		c.subscribe(t, "checkout.shop")
		time.Sleep(10 * moment)
		c.wantHolds(t, "checkout.shop=1 ")
	})
}

func TestServicesThatDoNotExistMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, nil)
		p.server.Set(world(service(t, "checkout.shop", 1)))
		c := startClient(t, p, nil)
		c.subscribe(t, "checkout.shop")
		for i := range configstream.MaxSubscriptions + 10 {
			c.subscribe(t, fmt.Sprintf("no-%d.shop", i))
		}
		synctest.Wait()
		if n := len(p.server.Sessions()[0].Services()); n != configstream.MaxSubscriptions {
			t.Errorf("%d subscriptions, want %d", n, configstream.MaxSubscriptions)
		}
		c.wantHolds(t, "checkout.shop=1 ")
	})
}

func TestAClientIsMadeWhole(t *testing.T) {
	p := newPlane(t, nil)
	for what, cfg := range map[string]configstream.ClientConfig{
		"no dial":  {Hello: hello},
		"no hello": {Dial: p.dial},
		"nobody":   {Dial: p.dial, Hello: &configv1.Hello{Program: "sidecar"}},
	} {
		if _, err := configstream.NewClient(cfg); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	c, err := configstream.NewClient(configstream.ClientConfig{Hello: hello, Dial: p.dial})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Subscribe(t.Context(), topology.ServiceName{}); !errors.Is(err, topology.ErrName) {
		t.Errorf("a service without a name: error %v, want ErrName", err)
	}
}
