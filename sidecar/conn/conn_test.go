package conn

import (
	"bufio"
	"errors"
	"io"
	"net"
	"testing"
)

func pair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

func TestTold(t *testing.T) {
	near, _ := pair(t)
	told := 0
	c := Tell(near, func() { told++ })
	c.OnClose(func() { told++ })
	_ = c.Close()
	_ = c.Close()
	if told != 2 {
		t.Errorf("told %d times", told)
	}
	if c.OnClose(func() { told++ }); told != 3 {
		t.Error("not told of what has happened already")
	}
}

// TestEnds: who ends in order, who with a break, and who only half.
func TestEnds(t *testing.T) {
	for what, c := range map[string]struct {
		end func(c net.Conn)
		ok  bool // the other side sees an end in order
	}{
		"close":              {func(c net.Conn) { _ = Tell(c).Close() }, true},
		"half-close":         {func(c net.Conn) { _ = Tell(c).CloseWrite() }, true},
		"half-close, unread": {func(c net.Conn) { _ = early(c).(interface{ CloseWrite() error }).CloseWrite() }, true},
		"reset":              {func(c net.Conn) { Reset(c) }, false},
		"abort":              {func(c net.Conn) { Tell(c).Abort(nil) }, false},
		"abort, unread":      {func(c net.Conn) { early(c).(interface{ Abort(error) }).Abort(nil) }, false},
		"reset, through two": {func(c net.Conn) { Reset(Tell(Tell(c))) }, false},
	} {
		near, far := pair(t)
		c.end(near)
		if _, err := io.ReadAll(far); (err == nil) != c.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func early(c net.Conn) net.Conn {
	return &unread{Conn: c, early: []byte("x")}
}

// TestCarry: what TLS runs over does not end by itself.
func TestCarry(t *testing.T) {
	near, far := pair(t)
	_, _ = io.WriteString(near, "x")
	_ = near.Close()
	got, err := io.ReadAll(Carry(far))
	if string(got) != "x" || !errors.Is(err, ErrCut) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestUnread(t *testing.T) {
	near, far := pair(t)
	_, _ = io.WriteString(near, "hello, ")
	r := bufio.NewReader(far)
	if _, err := r.Peek(7); err != nil {
		t.Fatal(err)
	}
	c := Unread(far, r)
	_, _ = io.WriteString(near, "world")
	_ = near.Close()
	if got, err := io.ReadAll(c); string(got) != "hello, world" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if Unread(far, bufio.NewReader(far)) != net.Conn(far) {
		t.Error("a connection of which nothing was read is wrapped")
	}
}

func TestHandoff(t *testing.T) {
	near, far := pair(t)
	h := NewHandoff(near.LocalAddr())
	go h.Give(near)
	if c, err := h.Accept(); c != net.Conn(near) || err != nil || h.Addr() != near.LocalAddr() {
		t.Errorf("%v, %v", c, err)
	}
	_ = h.Close()
	_ = h.Close()
	if _, err := h.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	h.Give(far) // nobody takes it: closed
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection that nobody takes is left open: %v", err)
	}
}
