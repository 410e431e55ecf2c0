package configstream

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
)

// saveEvery is the least time between two writings of the state.
const saveEvery = time.Second

// saver keeps the last good state on disk. Its run is the only writer of the file.
type saver struct {
	file string
	log  *slog.Logger
	wake chan struct{} // holds one: there is a state to write

	mu   sync.Mutex
	next func() ([]byte, error) // guarded by mu; encodes the newest state; nil: it is written
}

func newSaver(file string, logger *slog.Logger) *saver {
	return &saver{file: file, log: logger.With("file", file), wake: make(chan struct{}, 1)}
}

// keep makes what encode returns the state to be written. It is called once, from the saver's goroutine, or not at all.
func (s *saver) keep(encode func() ([]byte, error)) {
	s.mu.Lock()
	s.next = encode
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends, and then what is left.
func (s *saver) run(ctx context.Context) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			s.save(context.WithoutCancel(ctx))
			return
		}
		// What else changes soon is written along. The first word of control is at risk for that long, too.
		timer := time.NewTimer(saveEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		s.save(ctx)
	}
}

// save writes the newest state, if it is not written. A state that can't be written is tried again with the next one.
func (s *saver) save(ctx context.Context) {
	s.mu.Lock()
	next := s.next
	s.next = nil
	s.mu.Unlock()
	if next == nil {
		return
	}
	b, err := next()
	if err == nil {
		err = atomicfile.Write(s.file, b, 0o600)
	}
	if err != nil {
		s.log.ErrorContext(ctx, "configuration not kept on disk", "error", err)
	}
}

// load reads what was kept; nil without an error when there is nothing. A file that can't be used is set aside.
func (s *saver) load(reader *configv1.Hello) (*kept, error) {
	b, err := atomicfile.Read(s.file, maxStateBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing was kept
	}
	var k *kept
	if err == nil {
		k, err = decodeState(b, reader)
	}
	if err != nil {
		s.setAside(err)
		return nil, err
	}
	return k, nil
}

// setAside moves a file that can't be used out of the way, for whoever wants to see why.
func (s *saver) setAside(reason error) {
	aside := s.file + ".corrupt"
	if err := os.Rename(s.file, aside); err != nil {
		reason = errors.Join(reason, err)
	}
	s.log.Error("kept configuration can't be used", "error", reason, "set_aside", aside)
}
