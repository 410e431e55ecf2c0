package inject

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
)

func handlerOf(t *testing.T) *handler {
	t.Helper()
	return &handler{
		settings: settingsOf(t, ""), bundle: func() string { return roots }, log: slog.New(slog.DiscardHandler),
		intake: newIntake(maxBodies), turns: make(chan struct{}, reviewsAtOnce),
	}
}

// TestShape: what would become more than it came with is refused before it is decoded; what Pods are like is not.
func TestShape(t *testing.T) {
	h := handlerOf(t).serve(ByNamespace)
	podOf := func(spec string) []byte {
		return reviewOf(t, func(r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(spec) })
	}
	many := func(n int, what string) string { return strings.TrimSuffix(strings.Repeat(what+",", n), ",") }
	for what, body := range map[string][]byte{
		"100,000 containers": podOf(`{"spec":{"containers":[` + many(100_000, "{}") + `]}}`),
		"deep":               podOf(`{"spec":{"containers":[{"name":"app"}],"x":` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}}`),
	} {
		if code, _, answer := ask(t, h, PathNamespace, "application/json", body); code != http.StatusRequestEntityTooLarge || !strings.Contains(answer, "more than") {
			t.Errorf("%s: %d %s", what, code, answer)
		}
	}
	for what, body := range map[string][]byte{
		"3,000 variables":        podOf(`{"spec":{"containers":[{"name":"app","env":[` + many(3_000, `{"name":"A","value":"a,b"}`) + `]}]}}`),
		"what strings hold":      podOf(`{"metadata":{"annotations":{"a":"` + strings.Repeat(`[{,\"\\`, 30_000) + `"}},"spec":{"containers":[{"name":"app"}]}}`),
		"60 deep, 1 MiB at once": podOf(`{"metadata":{"annotations":{"a":"` + strings.Repeat("x", 1<<20) + `"}},"spec":{"containers":[{"name":"app"}],"x":` + strings.Repeat("[", 60) + strings.Repeat("]", 60) + `}}`),
	} {
		if code, r, answer := ask(t, h, PathNamespace, "application/json", body); code != http.StatusOK || !r.Allowed {
			t.Errorf("%s: %d %.200s", what, code, answer)
		}
	}
	for doc, refused := range map[string]bool{
		`[` + many(maxValues-1, "1") + `]`: false, `[` + many(maxValues, "1") + `]`: true,
		strings.Repeat("[", maxNesting): false, strings.Repeat("[", maxNesting+1): true,
		`"` + strings.Repeat(",", maxValues) + `"`: false, `"\\"` + strings.Repeat(",", maxValues): true,
	} {
		if err := checkShape([]byte(doc)); (err != nil) != refused {
			t.Errorf("%.20s…: %v", doc, err)
		}
	}
}

// TestSlowBodies: however many reviews never come to an end, one that does is answered.
func TestSlowBodies(t *testing.T) {
	server := httptest.NewServer(Handler(settingsOf(t, ""), func() string { return roots }, slog.New(slog.DiscardHandler)))
	defer server.Close()
	for range 40 {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{", PathNamespace); err != nil {
			t.Fatal(err)
		}
	}
	client := &http.Client{Timeout: 30 * time.Second}
	for range 10 {
		answer, err := client.Post(server.URL+PathNamespace, "application/json", bytes.NewReader(reviewOf(t, nil)))
		if err != nil {
			t.Fatalf("among slow ones: %v", err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("among slow ones: %s", answer.Status)
		}
	}
}

// slow is a request whose body comes over a pipe, with deadlines as a connection has them.
type slow struct {
	*httptest.ResponseRecorder

	body net.Conn
}

func (s slow) SetReadDeadline(t time.Time) error { return s.body.SetReadDeadline(t) }

// start has h serve a request of which body is what came so far, and returns a channel that is closed when it is answered.
func start(t *testing.T, h http.Handler, remote, body string) (slow, <-chan struct{}) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	w, done := slow{httptest.NewRecorder(), theirs}, make(chan struct{})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, PathNamespace, io.NopCloser(theirs))
	r.RemoteAddr = remote
	r.Header.Set("Content-Type", "application/json")
	go func() {
		defer close(done)
		h.ServeHTTP(w, r)
	}()
	go func() { _, _ = io.WriteString(ours, body) }()
	synctest.Wait()
	return w, done
}

// TestPatience: a body that does not come and a turn that does not come are both answered, with a reason.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handlerOf(t)
		w, done := start(t, h.serve(ByNamespace), "10.1.0.9:1", "{")
		<-done
		if w.Code != http.StatusRequestTimeout || !strings.Contains(w.Body.String(), "did not come within") {
			t.Errorf("a body that does not come: %d %s", w.Code, w.Body)
		}
		for range reviewsAtOnce {
			h.turns <- struct{}{}
		}
		code, _, answer := ask(t, h.serve(ByNamespace), PathNamespace, "application/json", reviewOf(t, nil))
		if code != http.StatusServiceUnavailable || !strings.Contains(answer, "under way") {
			t.Errorf("a turn that does not come: %d %s", code, answer)
		}
		if h.intake.held != 0 || len(h.intake.from) != 0 {
			t.Errorf("%d bytes are held for nobody", h.intake.held)
		}
	})
}

// TestCrowd: when there is no room, who holds the most makes it, whether its body is on its way or waits for a turn.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handlerOf(t)
		h.intake = newIntake(5 * firstPart)
		honest, honestDone := start(t, h.serve(ByNamespace), "10.1.0.1:1", "{")
		first, firstDone := start(t, h.serve(ByNamespace), "10.1.0.9:1", strings.Repeat(" ", firstPart+1)) // holds two parts
		_, secondDone := start(t, h.serve(ByNamespace), "10.1.0.9:2", "{")
		_, thirdDone := start(t, h.serve(ByNamespace), "10.1.0.9:3", "{")
		code, r, answer := ask(t, h.serve(ByNamespace), PathNamespace, "application/json", reviewOf(t, nil)) // from 192.0.2.1
		synctest.Wait()
		if code != http.StatusOK || !r.Allowed {
			t.Errorf("among those who hold all the room: %d %s", code, answer)
		}
		select {
		case <-firstDone:
			if first.Code != http.StatusServiceUnavailable || !strings.Contains(first.Body.String(), "too much") {
				t.Errorf("who had to go: %d %s", first.Code, first.Body)
			}
		default:
			t.Error("nobody had to go")
		}
		select {
		case <-honestDone:
			t.Errorf("who held little had to go: %d %s", honest.Code, honest.Body)
		default:
		}
		<-secondDone
		<-thirdDone
		<-honestDone

		// One that waits for its turn makes room too; one that is decoded does not, and who asks for more than is left goes itself.
		in := newIntake(4 * firstPart)
		enter := func(from string) *body {
			b, err := in.enter(addressOf(from), func() {})
			if err != nil {
				t.Fatalf("%s: %v", from, err)
			}
			return b
		}
		isGone := func(b *body) bool {
			select {
			case <-b.gone:
				return true
			default:
				return false
			}
		}
		decoded, waits, other := enter("[2001:db8::1]:1"), enter("[2001:db8::2]:1"), enter("10.1.0.1:1")
		more := enter("[2001:db8::3]:1")
		if !decoded.stay() {
			t.Error("there was room, and yet it had to go")
		}
		last := enter("10.1.0.2:1")
		if isGone(decoded) || !isGone(waits) || isGone(other) || isGone(more) || waits.stay() {
			t.Errorf("gone: decoded %t, waits %t, other %t, more %t", isGone(decoded), isGone(waits), isGone(other), isGone(more))
		}
		if b, err := last.read(strings.NewReader(strings.Repeat("x", 4*firstPart))); err == nil {
			t.Errorf("%d bytes, more than there is room for", len(b))
		}
		for _, b := range []*body{decoded, waits, other, more, last} {
			b.leave()
		}
		if in.held != 0 || len(in.from) != 0 {
			t.Errorf("%d bytes are held for nobody", in.held)
		}
	})
}
