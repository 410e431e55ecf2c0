package sidecar

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// rehearse has a drill be on at a server, or none.
func (s *side) rehearse(d *topology.Drill) {
	last := s.snapshots.Load()
	spec := topology.SnapshotSpec{Self: last.Self(), Clusters: last.Clusters()}
	for _, in := range last.Inbounds() {
		drilled := *in
		drilled.Drill = d
		spec.Inbounds = append(spec.Inbounds, &drilled)
	}
	s.snapshots.Store(topology.NewSnapshot(spec))
	for deadline := time.Now().Add(patience); (s.Sidecar.inbound.drills.Of(checkout) != nil) != (d != nil); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.w.Fatal("the drill does not come into force")
		}
	}
}

func post(t *testing.T, c *http.Client, url string) (heard, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, io.LimitReader(strings.NewReader("order"), 5))
	if err != nil {
		t.Fatal(err)
	}
	return do(t, c, req)
}

// TestDrill: a drilled copy executes nothing, and whatever is asked of it goes elsewhere, on sessions that are open and on new ones; after the drill
// it answers again.
func TestDrill(t *testing.T) {
	w := newWorld(t)
	here, there := &ledger{name: "near"}, &ledger{name: "far"}
	_, a := serveApp(t, here.ServeHTTP)
	_, b := serveApp(t, there.ServeHTTP)
	near, far := w.server(eu, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b)
	w.gateway("gateway-0", to(far))
	v := view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}}
	old, fresh := w.caller(v, nil), w.caller(v, nil)
	if _, body := get(t, old.client(), checkoutURL+"?id=before"); !strings.HasPrefix(body, "near") {
		t.Fatalf("before: %q", body)
	}
	near.rehearse(&topology.Drill{ID: "d-1", Ends: time.Now().Add(time.Hour), Left: time.Hour})
	for who, c := range map[string]*side{"an open session": old, "a new session": fresh} {
		client := c.client()
		for range 10 {
			if resp, body := post(t, client, checkoutURL+"?id="+strings.ReplaceAll(who, " ", "")); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "far") {
				t.Fatalf("%s: POST: %d %q", who, resp.StatusCode, body)
			}
			if resp, body := get(t, client, checkoutURL+"?id=get"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "far") {
				t.Fatalf("%s: GET: %d %q", who, resp.StatusCode, body)
			}
		}
	}
	for _, id := range []string{"anopensession", "anewsession", "get"} {
		if n := here.times(id); n != 0 {
			t.Errorf("%s: executed %d times where it looks dead", id, n)
		}
	}
	x := old.Explain(t.Context(), topology.Query{Service: checkout, Port: 80})
	if last := x.Rows[len(x.Rows)-1]; last.State != topology.LastResort {
		t.Errorf("explained as %+v", x.Rows)
	}
	for who, c := range map[string]*side{"an open session": old, "a new session": fresh} {
		rows := c.Explain(t.Context(), topology.Query{Service: checkout, Port: 80}).Rows
		if last := rows[len(rows)-1]; !strings.Contains(last.Reason, "failover drill") || strings.Contains(last.Reason, "tls:") {
			t.Errorf("%s: why is said as %q", who, last.Reason)
		}
	}
	near.rehearse(nil)
	client := old.client()
	waitFor(t, "it answers again", func() bool {
		_, body := get(t, client, checkoutURL+"?id=after")
		return strings.HasPrefix(body, "near")
	})
}

// TestSilentDrill: nothing is answered, and what was not delivered during the drill is not executed after it.
func TestSilentDrill(t *testing.T) {
	w := newWorld(t)
	here, there := &ledger{name: "near"}, &ledger{name: "far"}
	_, a := serveApp(t, here.ServeHTTP)
	_, b := serveApp(t, there.ServeHTTP)
	near, far := w.server(eu, "checkout", topology.HTTP, a), w.server(us, "checkout", topology.HTTP, b)
	w.gateway("gateway-0", to(far))
	c := w.caller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}}, nil)
	client := c.client()
	for range 20 {
		get(t, client, checkoutURL+"?id=before")
	}
	near.rehearse(&topology.Drill{ID: "d-1", Ends: time.Now().Add(time.Hour), Left: time.Hour, Silent: true})
	resp, body := post(t, client, checkoutURL+"?id=post") // it was sent, and may not be sent again
	if code := resp.Header.Get(headerError); resp.StatusCode != http.StatusBadGateway || code != string(CodeAnswerLost) {
		t.Errorf("POST: %d %s %q", resp.StatusCode, code, body)
	}
	for range 5 {
		if resp, body := get(t, client, checkoutURL+"?id=get"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "far") {
			t.Fatalf("GET: %d %q", resp.StatusCode, body)
		}
	}
	near.rehearse(nil)
	waitFor(t, "it answers again", func() bool {
		_, body := get(t, client, checkoutURL+"?id=after")
		return strings.HasPrefix(body, "near")
	})
	if n := here.times("post") + here.times("get") + there.times("post"); n != 0 {
		t.Errorf("%d requests of the drill's time were executed later", n)
	}
}

// TestDrilledConnection: an opaque connection goes elsewhere, too, and one that was open before goes on.
func TestDrilledConnection(t *testing.T) {
	w := newWorld(t)
	saying := func(name string) func(c *net.TCPConn) {
		return func(c *net.TCPConn) {
			_, _ = io.WriteString(c, name)
			_, _ = io.Copy(c, c)
		}
	}
	near, far := w.server(eu, "checkout", topology.TCP, tcpApp(t, saying("near"))), w.server(us, "checkout", topology.TCP, tcpApp(t, saying("far.")))
	w.gateway("gateway-0", to(far))
	_, ways := w.opaqueCaller(view{endpoints: []topology.Endpoint{near.endpoint("checkout-0")}, remotes: []topology.Remote{remote(1, far)}})
	hear := func(c net.Conn) string {
		var said [4]byte
		_, _ = io.ReadFull(c, said[:])
		return string(said[:])
	}
	open := ways["local listener"]()
	defer func() { _ = open.Close() }()
	if said := hear(open); said != "near" {
		t.Fatalf("before: %q", said)
	}
	near.rehearse(&topology.Drill{ID: "d-1", Ends: time.Now().Add(time.Hour), Left: time.Hour})
	for what, dial := range ways {
		c := dial()
		if said := hear(c); said != "far." {
			t.Errorf("%s: %q answers", what, said)
		}
		_ = c.Close()
	}
	if _, err := io.WriteString(open, "more"); err != nil || hear(open) != "more" {
		t.Errorf("what was open before: %v", err)
	}
}
