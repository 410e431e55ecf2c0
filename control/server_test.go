package control

import (
	"context"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
)

// TestCallsAreBounded: what gRPC holds for calls has an end, and a call that has ended makes room.
func TestCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(calls)
		resolve := &tap.Info{FullMethodName: configv1.Config_Resolve_FullMethodName}
		first, end := context.WithCancel(t.Context())
		if _, err := c.limit(first, resolve); err != nil {
			t.Fatal(err)
		}
		for range maxCalls - 1 {
			if _, err := c.limit(t.Context(), resolve); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.limit(t.Context(), resolve); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("one too many: %v", err)
		}
		if _, err := c.limit(t.Context(), &tap.Info{FullMethodName: configv1.Config_Stream_FullMethodName}); err != nil {
			t.Errorf("a stream: %v", err)
		}
		end()
		synctest.Wait()
		if _, err := c.limit(t.Context(), resolve); err != nil {
			t.Errorf("after one has ended: %v", err)
		}
	})
}
