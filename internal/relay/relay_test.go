package relay_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/relay"
)

// tcpPair returns both ends of a loopback connection.
func tcpPair(t *testing.T) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialled, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

type result struct {
	stats relay.Stats
	err   error
}

// piped returns the outer ends of two connections whose inner ends are relayed, and what Pipe returns.
func piped(ctx context.Context, t *testing.T) (a, b *net.TCPConn, done <-chan result) {
	t.Helper()
	a, innerA := tcpPair(t)
	b, innerB := tcpPair(t)
	ch := make(chan result, 1)
	go func() {
		s, err := relay.Pipe(ctx, innerA, innerB)
		ch <- result{s, err}
	}()
	return a, b, ch
}

func TestHalfCloseLeavesTheOtherWayOpen(t *testing.T) {
	a, b, done := piped(t.Context(), t)
	request := make([]byte, 1<<20)
	_, _ = rand.Read(request)
	go func() { _, _ = a.Write(request); _ = a.CloseWrite() }()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, request) {
		t.Fatalf("b read %d bytes, %v; want %d", len(got), err, len(request))
	}
	if _, err := b.Write([]byte("answer")); err != nil { // after a's half-close
		t.Fatal(err)
	}
	_ = b.CloseWrite()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Fatalf("a read %q, %v", got, err)
	}
	if r := <-done; r.err != nil || r.stats.AToB != 1<<20 || r.stats.BToA != 6 {
		t.Errorf("Pipe returned %+v", r)
	}
}

func TestBreakIsNotEOF(t *testing.T) {
	a, b, done := piped(t.Context(), t)
	if _, err := a.Write([]byte("half of it")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	_ = a.SetLinger(0)
	_ = a.Close() // RST
	if n, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("b read %d, %v; want an error that is not EOF", n, err)
	}
	if r := <-done; r.err == nil {
		t.Error("Pipe returned nil")
	}
}

func TestContextEndsBoth(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("peer's trust domain was removed")
	a, b, done := piped(ctx, t)
	cancel(cause)
	for _, c := range []*net.TCPConn{a, b} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("still open")
		}
	}
	if r := <-done; !errors.Is(r.err, cause) {
		t.Errorf("Pipe returned %v, want the cause", r.err)
	}
}

func TestCopyGrowsItsBuffer(t *testing.T) {
	in := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var out bytes.Buffer
	// Hide ReadFrom and WriteTo, so that Copy's own loop runs.
	n, err := relay.Copy(struct{ io.Writer }{&out}, struct{ io.Reader }{bytes.NewReader(in)})
	if err != nil || n != int64(len(in)) || !bytes.Equal(out.Bytes(), in) {
		t.Errorf("Copy = %d, %v", n, err)
	}
}
