package datagram

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func record(body string) []byte { return append(AppendHeader(nil, len(body)), body...) }

func TestReader(t *testing.T) {
	tls := "\x17\x03\x03\x00\x05hello"
	stream := tls + string(record("one")) + string(record("")) + tls + string(record(strings.Repeat("x", MaxBody)))
	for name, from := range map[string]io.Reader{"whole": strings.NewReader(stream), "byte by byte": iotest.OneByteReader(strings.NewReader(stream))} {
		r := NewReader(from)
		for i, want := range []Record{{false, []byte(tls)}, {true, record("one")}, {true, record("")}, {false, []byte(tls)}, {true, record(strings.Repeat("x", MaxBody))}} {
			got, err := r.Next()
			if err != nil || got.Datagram != want.Datagram || !bytes.Equal(got.Bytes, want.Bytes) {
				t.Fatalf("%s, record %d: %t, %d bytes, %v", name, i, got.Datagram, len(got.Bytes), err)
			}
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s, at the end: %v", name, err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"HTTP":              "GET / HTTP/1.1\r\n\r\n",
		"a long TLS record": "\x17\x03\x03\x41\x01" + strings.Repeat("x", 1<<15),
		"another version":   string(record("x")[:1]) + "\x02\x00\x00\x01x",
		"heartbeat":         "\x18\x03\x03\x00\x01x",
	} {
		var bad *Error
		if _, err := NewReader(strings.NewReader(in)).Next(); !errors.As(err, &bad) {
			t.Errorf("%s: %v, want an *Error", name, err)
		}
	}
	for n := range 8 {
		_, err := NewReader(bytes.NewReader(record("one")[:n])).Next()
		if want := map[bool]error{true: io.EOF, false: io.ErrUnexpectedEOF}[n == 0]; !errors.Is(err, want) {
			t.Errorf("%d bytes of a record: %v, want %v", n, err, want)
		}
	}
}

// A length is no bytes: what is reserved for a datagram is little, or at most twice what has come of it.
func TestALengthReservesNothing(t *testing.T) {
	for _, came := range []int{0, 100, 10 << 10, 40 << 10} {
		in := append(AppendHeader(nil, MaxBody), make([]byte, came)...)
		record, err := NewReader(bytes.NewReader(in)).Next()
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d bytes of it: %v", came, err)
		}
		if most := max(2*len(in), firstPiece); cap(record.Bytes) > most {
			t.Errorf("%d bytes of it: %d are reserved, want at most %d", came, cap(record.Bytes), most)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(append(record("one"), "\x17\x03\x03\x00\x05hello"...))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b))
		var again []byte
		for {
			record, err := r.Next()
			if err != nil {
				break
			}
			again = append(again, record.Bytes...)
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("the records are %x, of %x", again, b)
		}
	})
}

func TestQueue(t *testing.T) {
	q := NewQueue(3, 100, nil, "")
	dropped := 0
	for _, text := range []string{"a", "b", "c", "d", strings.Repeat("e", 98)} {
		dropped += q.Put([]byte(text))
	}
	// a and b make room: three are the most.
	if dropped != 2 || q.Dropped() != 2 {
		t.Errorf("%d dropped, %d counted, want 2", dropped, q.Dropped())
	}
	for _, want := range []byte{'c', 'd', 'e'} {
		if p, ok := q.TakeNow(); !ok || p[0] != want {
			t.Errorf("took %q, %t, want %c", p, ok, want)
		}
	}
	if _, ok := q.TakeNow(); ok {
		t.Error("took from an empty one")
	}
	q.Close()
	q.Put([]byte("late"))
	if _, ok := q.Take(); ok {
		t.Error("took from a closed one")
	}
}

// Queues that share a budget hold no more together, and one that holds nothing takes nothing from the others.
func TestQueueBudget(t *testing.T) {
	b := NewBudget(20)
	one, two := NewQueue(100, 100, b, "a"), NewQueue(100, 100, b, "a")
	one.Put(make([]byte, 8))
	if n := two.Put(make([]byte, 8)); n != 1 {
		t.Errorf("%d dropped past the budget, want 1: itself", n)
	}
	if n := one.Put(make([]byte, 9)); n != 1 {
		t.Errorf("%d dropped, want 1: its own oldest", n)
	}
	one.Close()
	if n := two.Put(make([]byte, 10)); n != 0 {
		t.Errorf("%d dropped, though all was given back", n)
	}
	if p, ok := two.Take(); !ok || len(p) != 10 || b.left != 20 || len(b.held) != 0 {
		t.Errorf("took %d bytes, %d left, held by %v", len(p), b.left, b.held)
	}
}

// However many queues one fills by taking nothing, others find as much as it has.
func TestQueueBudgetIsShared(t *testing.T) {
	b := NewBudget(1000)
	for range 100 {
		NewQueue(100, 100, b, "greedy").Put(make([]byte, 50))
	}
	modest := NewQueue(100, 1000, b, "modest")
	for range 6 {
		modest.Put(make([]byte, 50))
	}
	if b.held["greedy"] != 500 || b.held["modest"] != 250 || modest.Dropped() != 1 {
		t.Errorf("held %v, %d dropped, want 500, and half of the rest", b.held, modest.Dropped())
	}
}

func TestQueueManyTimes(t *testing.T) {
	q := NewQueue(4, 1000, nil, "")
	for i := range 1000 {
		q.Put([]byte{byte(i)})
		q.Put([]byte{byte(i)})
		if p, ok := q.TakeNow(); !ok || i > 4 && p[0] == byte(i) {
			t.Fatalf("%d: %v, %t", i, p, ok)
		}
	}
	if len(q.waiting) > 8 {
		t.Errorf("it has grown to %d", len(q.waiting))
	}
}
