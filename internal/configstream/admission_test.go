package configstream_test

import (
	"context"
	"errors"
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
