package replay

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

// TestClosedAttemptReadsNoMore: closing an attempt ends its Read though the source says nothing, and what the source says then is the next attempt's.
func TestClosedAttemptReadsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, says := io.Pipe()
		b := NewStream(source)
		first, _ := b.Attempt()
		given := make(chan error)
		go func() { _, err := first.Read(make([]byte, 10)); given <- err }()
		synctest.Wait() // it waits for the source
		_ = first.Close()
		if err := <-given; !errors.Is(err, errGivenUp) {
			t.Errorf("got %v", err)
		}
		second, ok := b.Attempt()
		if !ok {
			t.Fatal("not replayable")
		}
		go func() { _, _ = io.WriteString(says, "hello"); _ = says.Close() }()
		if got, err := io.ReadAll(second); string(got) != "hello" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		third, _ := b.Attempt()
		if got, err := io.ReadAll(third); string(got) != "hello" || err != nil || !b.Consumed() {
			t.Errorf("again: %q, %v", got, err)
		}
	})
}

// TestLongStream: what is too long to be kept arrives whole, however it comes, and once.
func TestLongStream(t *testing.T) {
	want := make([]byte, 3*Limit+123)
	for i := range want {
		want[i] = byte(i * 7)
	}
	for name, source := range map[string]io.Reader{
		"whole": bytes.NewReader(want), "by the byte": iotest.OneByteReader(bytes.NewReader(want)), "halves": iotest.HalfReader(bytes.NewReader(want)), "with its end": iotest.DataErrReader(bytes.NewReader(want)),
	} {
		b := NewStream(source)
		first, _ := b.Attempt()
		begun := make([]byte, 1000)
		if _, err := io.ReadFull(first, begun); err != nil {
			t.Fatal(err)
		}
		second, _ := b.Attempt()
		got, err := io.ReadAll(second)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
		if _, ok := b.Attempt(); ok {
			t.Errorf("%s: what is gone is promised again", name)
		}
	}
}
