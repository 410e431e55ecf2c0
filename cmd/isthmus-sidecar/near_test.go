package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestIsNear: what calls are made of is told to those who are in the sidecar's own network namespace, wherever else it listens.
func TestIsNear(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"127.0.0.1:4000", "127.0.0.1:15020", true},
		{"[::1]:4000", "[::1]:15020", true},
		{"[::ffff:127.0.0.1]:4000", "127.0.0.1:15020", true},
		{"10.1.0.7:4000", "10.1.0.7:15020", true},
		{"10.1.0.8:4000", "10.1.0.7:15020", false},
		{"somebody", "10.1.0.7:15020", false},
	} {
		to, err := net.ResolveTCPAddr("tcp", c.to)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, net.Addr(to)), http.MethodGet, "/explain", nil)
		r.RemoteAddr = c.from
		if got := isNear(r); got != c.want {
			t.Errorf("from %s to %s: %v", c.from, c.to, got)
		}
	}
}
