package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab/sample"
	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
)

// TestTraffic: a line says who answered, and why calls failed.
func TestTraffic(t *testing.T) {
	var broken atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set(sample.HeaderCluster, "us")
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := sendTraffic(ctx, traffic.Load{URL: server.URL, Rate: 500}, 20*time.Millisecond, w)
		_ = w.Close()
		ended <- err
	}()
	lines := bufio.NewScanner(r)
	until := func(want string) {
		t.Helper()
		re, last := regexp.MustCompile(want), ""
		for range 500 {
			if !lines.Scan() {
				break
			}
			if last = lines.Text(); re.MatchString(last) {
				return
			}
		}
		t.Errorf("no line like %s; the last is %s", want, last)
	}
	until(`^ok [1-9]\d*, failed 0: us [1-9]`)
	broken.Store(true)
	until(`^ok 0, failed [1-9]\d*; status 503`)
	cancel()
	for lines.Scan() { // the last ones
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
