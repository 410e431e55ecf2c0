package sidecar

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// BenchmarkOverload offers an application three times what it can, with and without the mesh between, on real sockets: goodput is what part of its best
// rate it still answers to callers who wait patience. The application is the kind that suffers: a fixed number of workers, a queue without end, and it works
// for callers that have gone.
func BenchmarkOverload(b *testing.B) {
	const (
		workers  = 16
		work     = 20 * time.Millisecond
		patience = 300 * time.Millisecond
		settle   = 6 * time.Second // until a limit is found
		measure  = 6 * time.Second
	)
	for _, way := range []string{"direct", "mesh"} {
		b.Run(way, func(b *testing.B) {
			w := newWorld(b)
			w.quiet = true
			slots := make(chan struct{}, workers)
			_, here := serveApp(b, func(w http.ResponseWriter, _ *http.Request) {
				slots <- struct{}{}
				time.Sleep(work)
				<-slots
				_, _ = io.WriteString(w, "ok")
			})
			through := here.String()
			if way == "mesh" {
				near := w.server(eu, "checkout", topology.HTTP, here)
				through = w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}}, nil).proxy.Host
			}
			transport := &http.Transport{MaxIdleConnsPerHost: 4096, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", through)
			}}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			// ask returns whether the answer came in time, and was one.
			ask := func() (answered, shed bool) {
				ctx, cancel := context.WithTimeout(b.Context(), patience)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, checkoutURL, http.NoBody)
				if err != nil {
					return false, false
				}
				resp, err := client.Do(req)
				if err != nil {
					return false, false
				}
				_, err = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				return err == nil && resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusServiceUnavailable
			}
			for b.Loop() {
				peak := closedLoop(workers, measure/2, ask)
				if peak == 0 {
					b.Fatal("nothing is answered, though there is little to do")
				}
				good, shed := openLoop(3*peak, settle, measure, ask)
				b.ReportMetric(peak, "peak/s")
				b.ReportMetric(100*good/peak, "%goodput")
				b.ReportMetric(100*shed/(3*peak), "%shed")
			}
		})
	}
}

// closedLoop has callers ask one after the other for d, and returns how many were answered a second.
func closedLoop(callers int, d time.Duration, ask func() (answered, shed bool)) float64 {
	var answered atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for range callers {
		wg.Go(func() {
			for time.Now().Before(end) {
				if ok, _ := ask(); ok {
					answered.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return float64(answered.Load()) / d.Seconds()
}

// openLoop asks rate times a second, whatever comes back, and returns what was answered and what was refused a second after settle.
func openLoop(rate float64, settle, measure time.Duration, ask func() (answered, shed bool)) (good, refused float64) {
	var answered, shed atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for i := 0; ; i++ {
		due := time.Duration(float64(i) / rate * float64(time.Second))
		if due > settle+measure {
			break
		}
		time.Sleep(time.Until(began.Add(due)))
		counts := due > settle
		wg.Go(func() {
			ok, no := ask()
			if counts && ok {
				answered.Add(1)
			}
			if counts && no {
				shed.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(answered.Load()) / measure.Seconds(), float64(shed.Load()) / measure.Seconds()
}
