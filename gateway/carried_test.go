package gateway

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

// A stream ends with the export that it was opened for, whether that goes as a whole, or for its cluster, or for its port. Others go on.
func TestStreamsEndWithTheirExport(t *testing.T) {
	for name, withdraw := range map[string]func(away *testCluster){
		"export": func(away *testCluster) { away.exports = away.exports[1:] },
		"audience": func(away *testCluster) {
			away.exports[0] = changed(away.exports[0], []topology.ClusterName{clusterName("ap")}, 80)
		},
		"port": func(away *testCluster) { away.exports[0] = changed(away.exports[0], nil, 81) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w *world) {
				t := w.t
				eu, us := twoClusters(w, 1)
				us[0].c.export("cart.shop", nil, echo)
				w.cluster("ap")
				w.publish()
				synctest.Wait()
				open := func(service string) *call {
					c := eu.open("us", service, "")
					if _, err := preamble.ReadReply(c); err != nil {
						t.Fatal(err)
					}
					return c
				}
				gone, stays := open("checkout.shop"), open("cart.shop")
				withdraw(us[0].c)
				w.publish()
				time.Sleep(time.Second)
				if got, err := io.ReadAll(gone); err == nil {
					t.Errorf("the stream ended in order after %q", got)
				}
				_, _ = stays.Write([]byte("still here"))
				_ = stays.CloseWrite()
				if got, err := io.ReadAll(stays); err != nil || string(got) != "still here" {
					t.Errorf("the other export's stream: %q, %v", got, err)
				}
				synctest.Wait()
				if n := len(us[0].carried.streams); n != 0 {
					t.Errorf("%d streams are still known", n)
				}
				if n := testutil.ToFloat64(us[0].metrics.broken.WithLabelValues("eu", "us", "checkout.shop")); n != 1 {
					t.Errorf("%v streams broke, want 1", n)
				}
			})
		})
	}
}

func changed(e *topology.Export, audience []topology.ClusterName, port uint16) *topology.Export {
	next := *e
	next.Audience, next.Ports = audience, []uint16{port}
	return &next
}

// What drains says so to control, at once: the sidecars can move before the grace ends.
func TestDrainIsReported(t *testing.T) {
	inBubble(t, func(w *world) {
		t := w.t
		eu, _ := twoClusters(w, 1)
		c := eu.open("us", "checkout.shop", "")
		if _, err := preamble.ReadReply(c); err != nil {
			t.Fatal(err)
		}
		last := func() bool {
			eu.mu.Lock()
			defer eu.mu.Unlock()
			return len(eu.reports) > 0 && eu.reports[len(eu.reports)-1].GetDraining()
		}
		time.Sleep(time.Second)
		if last() {
			t.Error("reported to drain before it does")
		}
		eu.stop()
		time.Sleep(2 * reportPause)
		if !last() {
			t.Error("not reported")
		}
		_ = c.CloseWrite()
		_, _ = io.ReadAll(c)
	})
}
