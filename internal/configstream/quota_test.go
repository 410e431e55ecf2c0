package configstream_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// TestLease: what a program asks for arrives as it is, and so does the answer: that there is one with no shares, and that there is none.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var who spiffeid.ID
		var receiver string
		var asked configstream.Demands
		p := newPlane(t, func(cfg *configstream.ServerConfig) {
			cfg.Lease = func(id spiffeid.ID, r string, d configstream.Demands) (configstream.Shares, time.Duration) {
				who, receiver, asked = id, r, d
				return configstream.Shares{"shop/q/a": {{Bucket: "x", Rate: 2.5}}, "shop/q/b": nil, "shop/q/unasked": nil}, 3 * time.Second
			}
		})
		c := startClient(t, p, nil)
		demands := configstream.Demands{"shop/q/a": {{Bucket: "x", Rate: 7}, {Bucket: "y"}}, "shop/q/b": nil, "shop/q/none": nil}
		if _, _, err := c.Lease(t.Context(), demands); !errors.Is(err, configstream.ErrUnavailable) {
			t.Errorf("before there is a connection: %v", err)
		}
		time.Sleep(moment)
		shares, ttl, err := c.Lease(t.Context(), demands)
		if err != nil || ttl != 3*time.Second {
			t.Fatal(ttl, err)
		}
		if diff := cmp.Diff(demands, asked); diff != "" || who != peer || receiver != "sidecar/shop/checkout-0" {
			t.Errorf("%s %s asked\n%s", who, receiver, diff)
		}
		if diff := cmp.Diff(configstream.Shares{"shop/q/a": {{Bucket: "x", Rate: 2.5}}, "shop/q/b": nil}, shares); diff != "" {
			t.Error(diff)
		}
		p.stop()
		time.Sleep(moment)
		if _, _, err = c.Lease(t.Context(), demands); !errors.Is(err, configstream.ErrUnavailable) {
			t.Errorf("while control is away: %v", err)
		}
	})
}

func TestLeaseIsBounded(t *testing.T) {
	cfg := configstream.ServerConfig{
		Peer: func(context.Context) (spiffeid.ID, error) { return peer, nil },
		Lease: func(spiffeid.ID, string, configstream.Demands) (configstream.Shares, time.Duration) {
			t.Error("it was asked")
			return nil, 0
		},
	}
	s := configstream.NewServer(cfg)
	defer s.Close()
	many := &configv1.LeaseRequest{}
	for i := range 20_001 {
		many.Demands = append(many.Demands, &configv1.Demand{Quota: fmt.Sprint(i)})
	}
	long := &configv1.LeaseRequest{Demands: []*configv1.Demand{{Quota: "q", Bucket: string(make([]byte, quota.MaxBucketName+1))}}}
	for what, r := range map[string]*configv1.LeaseRequest{"many": many, "long": long} {
		if _, err := s.Lease(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	cfg.Peer = func(context.Context) (spiffeid.ID, error) { return spiffeid.ID{}, errors.New("nobody") }
	n := configstream.NewServer(cfg)
	defer n.Close()
	if _, err := n.Lease(t.Context(), &configv1.LeaseRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("nobody: %v", err)
	}
}
