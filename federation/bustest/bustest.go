// Package bustest holds the contract of federation.Bus as a test, which every implementation runs.
//
// It uses real time, with deadlines that only a broken Bus reaches.
package bustest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
)

// Broker is one broker of the implementation under test.
type Broker struct {
	// Connect returns a new member's Bus. The broker of the test may end before it is closed.
	Connect func(t *testing.T) Bus
	// Break breaks the connection of a Bus, which then comes back by itself or because of a call to the returned function.
	Break func(t *testing.T, b Bus) (restore func())
	// Subscriptions returns how many there are in the broker now.
	Subscriptions func() int
}

// Bus is a federation.Bus that can be closed.
type Bus interface {
	federation.Bus
	Close() error
}

const patience = 30 * time.Second

// Run runs the contract; broker starts a new one.
func Run(t *testing.T, broker func(t *testing.T) Broker) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, Broker){
		"order":               testOrder,
		"no echo":             testNoEcho,
		"nothing from before": testNothingFromBefore,
		"several readers":     testSeveralReaders,
		"one at a time":       testOneAtATime,
		"context":             testContext,
		"slow reader":         testSlowReader,
		"broken connection":   testBroken,
		"close":               testClose,
		"limits":              testLimits,
		"no leaks":            testNoLeaks,
	} {
		t.Run(name, func(t *testing.T) { test(t, broker(t)) })
	}
}

// subscriber is a Subscribe under way.
type subscriber struct {
	messages chan federation.Message
	ended    chan error
	cancel   context.CancelFunc
}

// subscribe returns once the subscription is ready. deliver may be nil.
func subscribe(t *testing.T, b federation.Bus, deliver func(federation.Message)) *subscriber {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &subscriber{messages: make(chan federation.Message, 1<<16), ended: make(chan error, 1), cancel: cancel}
	if deliver == nil {
		deliver = func(m federation.Message) { s.messages <- m }
	}
	ready := make(chan struct{})
	go func() { s.ended <- b.Subscribe(ctx, func() { close(ready) }, deliver) }()
	t.Cleanup(cancel)
	select {
	case <-ready:
	case err := <-s.ended:
		t.Fatalf("subscribe: %v", err)
	case <-time.After(patience):
		t.Fatal("subscription never ready")
	}
	return s
}

func (s *subscriber) next(t *testing.T) federation.Message {
	t.Helper()
	select {
	case m := <-s.messages:
		return m
	case err := <-s.ended:
		t.Fatalf("subscription ended: %v", err)
	case <-time.After(patience):
		t.Fatal("no message")
	}
	return federation.Message{}
}

func (s *subscriber) end(t *testing.T, want error) {
	t.Helper()
	select {
	case err := <-s.ended:
		if !errors.Is(err, want) {
			t.Fatalf("subscription ended with %v, want %v", err, want)
		}
	case <-time.After(patience):
		t.Fatalf("subscription did not end with %v", want)
	}
}

func message(n int) federation.Message {
	return federation.Message{Subject: federation.SubjectPrefix + "a_example.head", Data: []byte(strconv.Itoa(n))}
}

// publish retries while the connection isn't up.
func publish(t *testing.T, b federation.Bus, m federation.Message) {
	t.Helper()
	eventually(t, "publish", func() error { return b.Publish(t.Context(), m) })
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	begun := time.Now()
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Since(begun) > patience {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(time.Millisecond)
	}
}

func testOrder(t *testing.T, k Broker) {
	t.Helper()
	a, b := k.Connect(t), k.Connect(t)
	s := subscribe(t, b, nil)
	const n = 300
	for i := range n {
		publish(t, a, message(i))
	}
	for i := range n {
		if m := s.next(t); string(m.Data) != strconv.Itoa(i) || m.Subject != message(i).Subject {
			t.Fatalf("message %d is %q under %q", i, m.Data, m.Subject)
		}
	}
}

func testNoEcho(t *testing.T, k Broker) {
	t.Helper()
	a, b := k.Connect(t), k.Connect(t)
	s := subscribe(t, a, nil)
	publish(t, a, message(1))
	publish(t, b, message(2))
	if m := s.next(t); string(m.Data) != "2" {
		t.Errorf("got %q, published by itself", m.Data)
	}
}

func testNothingFromBefore(t *testing.T, k Broker) {
	t.Helper()
	a, b := k.Connect(t), k.Connect(t)
	other := subscribe(t, k.Connect(t), nil)
	publish(t, a, message(1))
	other.next(t) // the broker has had it
	s := subscribe(t, b, nil)
	publish(t, a, message(2))
	if m := s.next(t); string(m.Data) != "2" {
		t.Errorf("got %q, published before", m.Data)
	}
}

func testSeveralReaders(t *testing.T, k Broker) {
	t.Helper()
	a, b := k.Connect(t), k.Connect(t)
	readers := []*subscriber{subscribe(t, b, nil), subscribe(t, b, nil), subscribe(t, k.Connect(t), nil)}
	publish(t, a, message(1))
	for _, s := range readers {
		if m := s.next(t); string(m.Data) != "1" {
			t.Errorf("got %q", m.Data)
		}
	}
}

func testOneAtATime(t *testing.T, k Broker) {
	t.Helper()
	var inside, most atomic.Int32
	got := make(chan struct{}, 1000)
	subscribe(t, k.Connect(t), func(federation.Message) {
		most.Store(max(most.Load(), inside.Add(1)))
		time.Sleep(100 * time.Microsecond)
		inside.Add(-1)
		got <- struct{}{}
	})
	var publishers sync.WaitGroup
	for range 4 {
		b := k.Connect(t)
		publishers.Go(func() {
			for i := range 50 {
				publish(t, b, message(i))
			}
		})
	}
	publishers.Wait()
	for range 200 {
		select {
		case <-got:
		case <-time.After(patience):
			t.Fatal("messages are missing")
		}
	}
	if most.Load() != 1 {
		t.Errorf("%d deliveries at once", most.Load())
	}
}

func testContext(t *testing.T, k Broker) {
	t.Helper()
	b := k.Connect(t)
	s := subscribe(t, b, nil)
	s.cancel()
	s.end(t, context.Canceled)
	eventually(t, "no subscription is left", func() error {
		if n := k.Subscriptions(); n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Subscribe(ended, func() {}, func(federation.Message) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("subscribe with an ended context: %v", err)
	}
	if err := b.Publish(ended, message(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("publish with an ended context: %v", err)
	}
}

// testSlowReader: a reader that stands still is told that it lost something; the publisher never waits for it.
func testSlowReader(t *testing.T, k Broker) {
	t.Helper()
	a, b := k.Connect(t), k.Connect(t)
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	s := subscribe(t, b, func(federation.Message) {
		select {
		case held <- struct{}{}:
		default:
		}
		<-hold
	})
	publish(t, a, message(0))
	select {
	case <-held:
	case <-time.After(patience):
		t.Fatal("no message")
	}
	big := federation.Message{Subject: message(0).Subject, Data: make([]byte, 16<<10)}
	other := subscribe(t, k.Connect(t), nil)
	const n = 1500
	for i := range n {
		publish(t, a, big)
		if i%100 == 99 { // not faster than another reader reads
			for range 100 {
				other.next(t)
			}
		}
	}
	close(hold)
	s.end(t, federation.ErrGap)
	again := subscribe(t, b, nil)
	publish(t, a, message(7))
	for {
		if m := again.next(t); string(m.Data) == "7" {
			return
		}
	}
}

func testBroken(t *testing.T, k Broker) {
	t.Helper()
	a, b := k.Connect(t), k.Connect(t)
	s := subscribe(t, b, nil)
	publish(t, a, message(1))
	s.next(t)
	restore := k.Break(t, b)
	s.end(t, federation.ErrGap)
	restore()
	s = subscribe(t, b, nil)
	publish(t, a, message(2))
	if m := s.next(t); string(m.Data) != "2" {
		t.Errorf("got %q", m.Data)
	}
	// And it can be heard again.
	s = subscribe(t, a, nil)
	publish(t, b, message(3))
	if m := s.next(t); string(m.Data) != "3" {
		t.Errorf("got %q", m.Data)
	}
}

func testClose(t *testing.T, k Broker) {
	t.Helper()
	b := k.Connect(t)
	s := subscribe(t, b, nil)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	s.end(t, federation.ErrBusClosed)
	if err := b.Publish(t.Context(), message(1)); !errors.Is(err, federation.ErrBusClosed) {
		t.Errorf("publish after close: %v", err)
	}
	if err := b.Subscribe(t.Context(), func() {}, func(federation.Message) {}); !errors.Is(err, federation.ErrBusClosed) {
		t.Errorf("subscribe after close: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func testLimits(t *testing.T, k Broker) {
	t.Helper()
	a := k.Connect(t)
	s := subscribe(t, k.Connect(t), nil)
	largest := federation.Message{Subject: message(0).Subject, Data: bytes.Repeat([]byte{0xa5}, federation.MaxMessage)}
	publish(t, a, largest)
	if m := s.next(t); !bytes.Equal(m.Data, largest.Data) {
		t.Errorf("%d bytes came, not as they were", len(m.Data))
	}
	if err := a.Publish(t.Context(), federation.Message{Subject: message(0).Subject, Data: make([]byte, federation.MaxMessage+1)}); err == nil {
		t.Error("a message over the limit was taken")
	}
	if err := a.Publish(t.Context(), federation.Message{Subject: "other.subject", Data: []byte("x")}); err == nil {
		t.Error("a message of another protocol was taken")
	}
	publish(t, a, message(1)) // the connection has outlived it
	if m := s.next(t); string(m.Data) != "1" {
		t.Errorf("got %q", m.Data)
	}
}

// testNoLeaks: a hundred broken connections leave as many subscriptions as before.
func testNoLeaks(t *testing.T, k Broker) {
	t.Helper()
	a, b := k.Connect(t), k.Connect(t)
	var gaps atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan string, 1<<16)
	ready := make(chan struct{}, 1<<10)
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			err := b.Subscribe(ctx, func() { ready <- struct{}{} }, func(m federation.Message) { got <- string(m.Data) })
			if !errors.Is(err, federation.ErrGap) {
				return
			}
			gaps.Add(1)
		}
	})
	wait := func() {
		select {
		case <-ready:
		case <-time.After(patience):
			t.Fatal("subscription never ready")
		}
	}
	wait()
	before := k.Subscriptions()
	const n = 100
	for range n {
		k.Break(t, b)()
		wait()
	}
	publish(t, a, message(42))
	for m := ""; m != "42"; {
		select {
		case m = <-got:
		case <-time.After(patience):
			t.Fatal("no message")
		}
	}
	eventually(t, "as many subscriptions as before", func() error {
		if now := k.Subscriptions(); now != before {
			return fmt.Errorf("%d before, %d now", before, now)
		}
		return nil
	})
	if gaps.Load() < n {
		t.Errorf("%d gaps seen of %d", gaps.Load(), n)
	}
	cancel()
	reading.Wait()
}
