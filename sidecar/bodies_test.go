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

	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// ahead is what is read of a body at once, and is not sent as long as it has to wait.
const ahead = 4 << 10

// counted is an endless body that counts what is taken of it.
type counted struct {
	taken *atomic.Int64
	until <-chan struct{}
}

func (c counted) Read(p []byte) (int, error) {
	select {
	case <-c.until:
		return 0, io.ErrUnexpectedEOF
	default:
		n := min(len(p), ahead)
		c.taken.Add(int64(n))
		return n, nil
	}
}

// TestBodiesHaveABound: one caller with many sessions, each full of uploads that the application does not take, has the called sidecar hold little for each
// session past the first few; and what it holds back is not lost: all goes on once the application takes it.
func TestBodiesHaveABound(t *testing.T) {
	const (
		sessions = maxWideFrom + 24
		uploads  = connectionWindow/streamWindow + 1 // of a session: they fill its window
		appHolds = 4 << 20                           // what the application's own server has taken for it
	)
	w := newWorld(t)
	hold := make(chan struct{})
	_, app := serveApp(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	})
	near := w.server(eu, "checkout", topology.HTTP2, app)
	ctx, stop := context.WithCancel(t.Context())
	var taken atomic.Int64
	var all sync.WaitGroup
	for range sessions {
		client := h2c(t, func(context.Context, string, string) (net.Conn, error) {
			return w.intrude(near, must(trust.WorkloadID(eu, "shop", "web")), session.HTTP2)
		})
		for range uploads {
			all.Go(func() {
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, checkoutURL, counted{&taken, ctx.Done()})
				if resp, err := client.Do(req); err == nil {
					_ = resp.Body.Close()
				}
			})
		}
	}
	var before int64
	waitFor(t, "nothing more is taken", func() bool {
		time.Sleep(500 * time.Millisecond)
		now := taken.Load()
		still := now == before && now > maxWideFrom*connectionWindow/2
		before = now
		return still
	})
	bound := int64(maxWideFrom*connectionWindow + (sessions-maxWideFrom)*narrowWindow + sessions*uploads*(ahead+bufferSize) + appHolds)
	if before > bound {
		t.Errorf("%d MiB are held of %d sessions, at most %d", before>>20, sessions, bound>>20)
	}
	t.Logf("%d MiB of %d sessions with %d uploads each; without a bound it would be %d", before>>20, sessions, uploads, sessions*connectionWindow>>20)
	// On a busy machine a session or two may be silent for so long that they are lost.
	if n := near.counter("isthmus_requests_total", "direction=inbound"); n > sessions*uploads/5 {
		t.Errorf("%v requests have ended: they are to wait", n)
	}
	stop()
	close(hold)
	all.Wait()
}

// TestDoorWidens: wide windows are for a few sessions of each caller, and for those of others when they have ended.
func TestDoorWidens(t *testing.T) {
	var d door
	leave := func() (ends []func()) {
		g := new(guest)
		for narrow := d.widen(g); narrow != nil; narrow = d.widen(g) {
			ends = append(ends, narrow)
		}
		return ends
	}
	first := leave()
	if len(first) != maxWideFrom {
		t.Errorf("one caller got %d, want %d", len(first), maxWideFrom)
	}
	n := len(first)
	for more := leave(); len(more) > 0; more = leave() {
		n += len(more)
	}
	if n != maxWide {
		t.Errorf("all got %d, want %d", n, maxWide)
	}
	first[0]()
	first[0]() // again does nothing
	if again := leave(); len(again) != 1 {
		t.Errorf("one has ended, and %d were given", len(again))
	}
}
