// Package traffic sends steady requests and keeps count of who answered: the load of the playground's run and of scenarios.
//
// A Load is run by one goroutine, which waits for its workers; a Tally may be read by others meanwhile.
package traffic

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab/sample"
	"github.com/isthmus-mesh/isthmus/internal/ledger"
)

// maxBody bounds what is read of an answer.
const maxBody = 1 << 20

// Load is steady traffic. A GET may be retried by whoever carries it, so not one of them has an excuse to fail; a POST may not, and
// has one only where its server died.
type Load struct {
	URL     string        // e.g. "http://checkout.shop.svc.clusterset.local/"
	Proxy   string        // host:port of the HTTP proxy that carries it; empty: none
	Body    string        // POST it; empty: GET
	Workers int           // callers, each with connections of its own. Default 8.
	Rate    float64       // requests a second, of all workers together, as long as answers come. Default 200.
	Timeout time.Duration // of one request. Default 10 s.
	// Dial connects to Proxy; nil: as this process would.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Trace gives each request a trace of its own (W3C Trace Context), by whose ID all who carry it know it.
	Trace bool
}

// Answer is how one request ended.
type Answer struct {
	Worker   int
	ID       string // of the trace
	Method   string
	Sent     time.Time
	Took     time.Duration
	Status   int    // of HTTP; 0 when none came
	Cluster  string // who says that it answered
	Workload string
	Err      error
}

// Failed reports whether the caller has a right to complain.
func (a Answer) Failed() bool { return a.Err != nil || a.Status != http.StatusOK }

// Reason says in words why it failed.
func (a Answer) Reason() string {
	switch {
	case a.Err != nil:
		return a.Err.Error()
	case a.Status != http.StatusOK:
		return fmt.Sprintf("status %d", a.Status)
	default:
		return ""
	}
}

// Entry is what the ledger takes of it.
func (a Answer) Entry() ledger.Entry {
	e := ledger.Entry{ID: a.ID, Role: ledger.Client, At: a.Sent, Cluster: a.Cluster, Copy: a.Workload, Method: a.Method, Status: a.Status}
	if a.Err != nil {
		e.Err = a.Err.Error()
	}
	return e
}

func (l Load) filled() Load {
	if l.Workers == 0 {
		l.Workers = 8
	}
	if l.Rate == 0 {
		l.Rate = 200
	}
	if l.Timeout == 0 {
		l.Timeout = 10 * time.Second
	}
	return l
}

// Run sends until ctx ends, then waits for the answers that are still due. It gives each answer to each of the sinks, from many
// goroutines.
func (l Load) Run(ctx context.Context, sinks ...func(Answer)) error {
	l = l.filled()
	var proxy func(*http.Request) (*url.URL, error)
	if l.Proxy != "" {
		proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: l.Proxy})
	}
	if _, err := url.Parse(l.URL); err != nil {
		return fmt.Errorf("traffic: %w", err)
	}
	var workers sync.WaitGroup
	for i := range l.Workers {
		workers.Go(func() {
			transport := &http.Transport{Proxy: proxy, DialContext: l.Dial}
			defer transport.CloseIdleConnections()
			w := worker{id: i, load: l, client: &http.Client{Transport: transport}, sinks: sinks}
			w.run(ctx)
		})
	}
	workers.Wait()
	return nil
}

type worker struct {
	id     int
	load   Load
	client *http.Client
	sinks  []func(Answer)
}

func (w worker) run(ctx context.Context) {
	every := time.Duration(float64(time.Second) * float64(w.load.Workers) / w.load.Rate)
	// Spread over the interval, so that the requests of all workers together are even.
	wait := time.NewTimer(every * time.Duration(w.id) / time.Duration(w.load.Workers))
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		sent := time.Now()
		a := w.ask(context.WithoutCancel(ctx))
		for _, sink := range w.sinks {
			sink(a)
		}
		wait.Reset(max(0, every-time.Since(sent)))
	}
}

func (w worker) ask(ctx context.Context) (a Answer) {
	ctx, cancel := context.WithTimeout(ctx, w.load.Timeout)
	defer cancel()
	a = Answer{Worker: w.id, Sent: time.Now()}
	defer func() { a.Took = time.Since(a.Sent) }()
	method := http.MethodGet
	if w.load.Body != "" {
		method = http.MethodPost
	}
	a.Method = method
	req, err := http.NewRequestWithContext(ctx, method, w.load.URL, strings.NewReader(w.load.Body))
	if err != nil {
		a.Err = err
		return a
	}
	if w.load.Trace {
		var trace [16]byte
		_, _ = rand.Read(trace[:]) // never fails
		a.ID = hex.EncodeToString(trace[:])
		req.Header.Set("Traceparent", "00-"+a.ID+"-"+a.ID[:16]+"-00")
	}
	resp, err := w.client.Do(req)
	if err != nil {
		a.Err = err
		return a
	}
	defer func() { _ = resp.Body.Close() }()
	a.Status = resp.StatusCode
	a.Cluster, a.Workload = resp.Header.Get(sample.HeaderCluster), resp.Header.Get(sample.HeaderWorkload)
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		a.Err = fmt.Errorf("after status %d: %w", resp.StatusCode, err)
	} else if a.Status != http.StatusOK {
		a.Err = fmt.Errorf("status %d: %.200s", a.Status, body)
	}
	return a
}
