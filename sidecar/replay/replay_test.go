package replay

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

func TestIdempotent(t *testing.T) {
	for method, want := range map[string]bool{
		"GET": true, "HEAD": true, "OPTIONS": true, "TRACE": true, "PUT": true, "DELETE": true,
		"POST": false, "PATCH": false, "CONNECT": false, "get": false, "": false,
	} {
		if got := Idempotent(method, nil); got != want {
			t.Errorf("%s: %v", method, got)
		}
		if !Idempotent(method, http.Header{"Idempotency-Key": {"k"}}) {
			t.Errorf("%s with a key is not", method)
		}
	}
}

func read(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	p := make([]byte, n)
	n, err := io.ReadFull(r, p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	return string(p[:n])
}

func TestSmallBodyIsReplayed(t *testing.T) {
	b := New(iotest.OneByteReader(strings.NewReader("hello")))
	first, _ := b.Attempt()
	if b.Touched() {
		t.Error("touched before the first read")
	}
	if got := read(t, first, 3); got != "hel" || !b.Touched() {
		t.Fatal(got)
	}
	for range 3 {
		a, ok := b.Attempt()
		if !ok {
			t.Fatal("not replayable")
		}
		if got := read(t, a, 100); got != "hello" {
			t.Fatalf("got %q", got)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	}
	if !b.Consumed() {
		t.Error("read to its end, and not consumed")
	}
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, errGivenUp) {
		t.Errorf("an attempt that ended still reads: %v", err)
	}
}

func TestLargeBodyIsStreamedOnce(t *testing.T) {
	want := bytes.Repeat([]byte("x"), 3*Limit)
	b := New(bytes.NewReader(want))
	a, _ := b.Attempt()
	read(t, a, Limit)
	if !b.Replayable() {
		t.Fatal("not replayable at the limit")
	}
	again, ok := b.Attempt()
	if !ok {
		t.Fatal("not replayable at the limit")
	}
	got, err := io.ReadAll(again)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	if _, ok := b.Attempt(); ok || b.Replayable() {
		t.Error("replayable above the limit")
	}
	if cap(b.kept) > Limit+maxRead {
		t.Errorf("%d bytes are kept", cap(b.kept))
	}
}

func TestErrorsAreReplayed(t *testing.T) {
	broken := errors.New("client went away")
	b := New(io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)))
	for range 2 {
		a, _ := b.Attempt()
		got, err := io.ReadAll(a)
		if string(got) != "abc" || !errors.Is(err, broken) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if b.Consumed() {
		t.Error("a body that broke counts as read to its end")
	}
}

func TestNoBody(t *testing.T) {
	b := New(nil)
	a, ok := b.Attempt()
	if got, _ := io.ReadAll(a); !ok || len(got) != 0 || !b.Replayable() || !b.Consumed() {
		t.Error("no body is not replayable")
	}
}

// An attempt that was given up may be inside Read: what arrives there is not lost to the next.
func TestGivenUpInsideRead(t *testing.T) {
	for _, size := range []int{5, Limit + 5} {
		synctest.Test(t, func(t *testing.T) {
			r, w := io.Pipe()
			b := New(r)
			first, _ := b.Attempt()
			go func() { _, _ = io.ReadAll(first) }()
			synctest.Wait() // it blocks in the pipe
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			second, ok := b.Attempt()
			if !ok {
				t.Fatal("not replayable though nothing was read")
			}
			done := make(chan string)
			go func() {
				got, err := io.ReadAll(second)
				if err != nil {
					t.Errorf("second attempt: %v", err)
				}
				done <- string(got)
			}()
			synctest.Wait()
			want := strings.Repeat("y", size)
			go func() { _, _ = io.WriteString(w, want); _ = w.Close() }()
			if got := <-done; got != want {
				t.Errorf("got %d bytes, want %d", len(got), len(want))
			}
		})
	}
}
