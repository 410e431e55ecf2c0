package datagram

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/datagram"
)

func pair(tb testing.TB) (*sealer, *opener) {
	tb.Helper()
	secret := bytes.Repeat([]byte{7}, secretSize)
	return &sealer{secret: secret}, &opener{secret: secret}
}

func seal(tb testing.TB, s *sealer, text string) []byte {
	tb.Helper()
	b, err := s.append(nil, 5, []byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestSealed(t *testing.T) {
	s, o := pair(t)
	for _, text := range []string{"", "a", string(bytes.Repeat([]byte("x"), MaxPayload))} {
		b := seal(t, s, text)
		if len(b) != len(text)+overhead {
			t.Errorf("%d bytes are sealed in %d", len(text), len(b))
		}
		if len(text) > 8 && bytes.Contains(b, []byte(text[:8])) {
			t.Error("the payload can be read")
		}
		word, payload, err := o.open(slices.Clone(b))
		if err != nil || word != 5 || string(payload) != text {
			t.Errorf("%d bytes: %d, %d bytes, %v", len(text), word, len(payload), err)
		}
		if _, _, err := o.open(b); !errors.Is(err, errReplayed) {
			t.Errorf("the same again: %v, want %v", err, errReplayed)
		}
	}
}

// Whatever bit a gateway flips, nothing opens; and a forged number costs no later datagram.
func TestSealedFlipped(t *testing.T) {
	s, o := pair(t)
	b := seal(t, s, "hello")
	for i := range len(b) * 8 {
		forged := slices.Clone(b)
		forged[i/8] ^= 1 << (i % 8)
		if _, _, err := o.open(forged); err == nil {
			t.Fatalf("bit %d flipped, and it opens", i)
		}
	}
	for n := range len(b) {
		if _, _, err := o.open(slices.Clone(b[:n])); err == nil {
			t.Fatalf("%d of %d bytes open", n, len(b))
		}
	}
	if _, _, err := o.open(b); err != nil {
		t.Errorf("after all of that: %v", err)
	}
	if e := o.window.newest(); e != 0 {
		t.Errorf("forged numbers have moved the window to %d", e)
	}
}

// What the one end seals is nothing that it opens itself: each direction has its own key.
func TestSealedReflected(t *testing.T) {
	a, _ := pair(t)
	o := &opener{secret: bytes.Repeat([]byte{8}, secretSize)}
	if _, _, err := o.open(seal(t, a, "hello")); !errors.Is(err, errForged) {
		t.Errorf("%v, want %v", err, errForged)
	}
}

// Datagrams open in any order, each once, across a change of keys.
func TestSealedReordered(t *testing.T) {
	s, o := pair(t)
	s.next.Store(1<<epochBits - 500)
	var all [][]byte
	for range 1000 {
		all = append(all, seal(t, s, "x"))
	}
	// The first that opens is of the second epoch's neighbour: without any before it, an opener knows epoch 0 and 1.
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, b := range all {
		if _, _, err := o.open(slices.Clone(b)); err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
	}
	for i, b := range all {
		if _, _, err := o.open(b); !errors.Is(err, errReplayed) {
			t.Fatalf("datagram %d again: %v", i, err)
		}
	}
}

func TestEpochs(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, secretSize)
	one, two := &sealer{secret: secret}, &sealer{secret: secret}
	two.next.Store(1 << epochBits)
	seal(t, one, "x")
	seal(t, two, "x")
	if one.last.Load().iv == two.last.Load().iv {
		t.Error("two epochs have one key")
	}
	far := &sealer{secret: secret}
	far.next.Store(2 << epochBits)
	o := &opener{secret: secret}
	if _, _, err := o.open(seal(t, far, "x")); !errors.Is(err, errForged) {
		t.Errorf("two epochs ahead: %v, want it refused without a key being made", err)
	}
	if o.epochs != [3]*epoch{} {
		t.Error("a key was made")
	}
}

// The window against the plain way: a set of what was taken.
func TestWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var w window
		taken := make(map[uint64]bool)
		var top uint64
		for range 2000 {
			var n uint64
			switch r.IntN(4) {
			case 0:
				n = top + r.Uint64N(3)
			case 1:
				n = top + r.Uint64N(20_000)
			default:
				n = top - min(top, r.Uint64N(10_000))
			}
			fresh := w.fresh(n)
			old := len(taken) > 0 && n <= top && top+1-n > (windowWords-1)*64
			if want := !taken[n] && !old; fresh != want {
				t.Fatalf("number %d with %d the newest: fresh is %t, want %t", n, top, fresh, want)
			}
			if fresh {
				w.take(n)
				taken[n] = true
				top = max(top, n)
			}
		}
	}
	var w window
	if w.fresh(math.MaxUint64) {
		t.Error("the last number is taken: none can follow it")
	}
}

func FuzzOpen(f *testing.F) {
	s, _ := pair(f)
	f.Add(seal(f, s, "hello"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, o := pair(t)
		_, payload, err := o.open(slices.Clone(b))
		if err == nil && len(payload)+overhead != len(b) {
			t.Errorf("%d bytes opened to %d", len(b), len(payload))
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	s, _ := pair(b)
	payload := make([]byte, 1200)
	out := make([]byte, 0, 2000)
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.append(out, 1, payload); err != nil {
			b.Fatal(err)
		}
	}
}

// What waits for one who takes nothing, in however many sessions, leaves room for others.
func TestSessionsShareABudget(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, secretSize)
	budget := NewBudget(64 << 10)
	session := func(owner string) *Session {
		return &Session{sealer: sealer{secret: secret}, out: datagram.NewQueue(queueDatagrams, queueBytes, budget, owner)}
	}
	dropped := 0
	for range 100 {
		dropped += session("greedy").Send(Data, 1, make([]byte, 1000))
	}
	if dropped < 100-32 {
		t.Errorf("%d of 100 were dropped: more than half of the room is one's", dropped)
	}
	if n := session("modest").Send(Data, 1, make([]byte, 1000)); n != 0 {
		t.Error("there is no room for another")
	}
}
