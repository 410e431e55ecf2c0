package traffic

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/internal/lab/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLoadCountsWhoAnswered(t *testing.T) {
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host != "checkout.test" { // it came as to a proxy
			t.Errorf("host %q", r.URL.Host)
		}
		w.Header().Set(sample.HeaderCluster, "us")
		if n.Add(1)%5 == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()

	ctx, cancel := context.WithCancel(t.Context())
	var tally Tally
	stop := func(Answer) {
		if tally.Counts().Total >= 50 {
			cancel()
		}
	}
	l := Load{URL: "http://checkout.test/", Proxy: server.Listener.Addr().String(), Workers: 4, Rate: 10_000}
	if err := l.Run(ctx, tally.Add, stop); err != nil {
		t.Fatal(err)
	}
	got := tally.Counts()
	if got.Total < 50 || got.Total != int(n.Load()) {
		t.Errorf("counted %d of %d", got.Total, n.Load())
	}
	if want := got.Total / 5; got.Failed != want || got.ByCluster["us"] != got.Total-want {
		t.Errorf("%+v, want %d failed", got, want)
	}
}

func TestTally(t *testing.T) {
	var tally Tally
	for i := range 100 {
		a := Answer{Status: 200, Cluster: "us", Took: time.Duration(i) * time.Millisecond}
		if i < 30 {
			a = Answer{Err: errors.New("reset")}
		}
		tally.Add(a)
	}
	want := Counts{Total: 100, Failed: 30, ByCluster: map[string]int{"us": 70}, Slowest: 99 * time.Millisecond}
	if d := cmp.Diff(want, tally.Counts()); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
	if got := len(tally.Failures()); got != maxFailures {
		t.Errorf("%d failures kept", got)
	}
	if got := tally.Quantile(0.5); got != 50*time.Millisecond {
		t.Errorf("median %s", got)
	}
	if got := new(Tally).Quantile(0.5); got != 0 {
		t.Errorf("median of nothing %s", got)
	}
}
