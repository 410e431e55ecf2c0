package configstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
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

func newSaver(file string, log *slog.Logger) *saver {
	return &saver{file: file, log: log.With("file", file), wake: make(chan struct{}, 1)}
}

// keep makes this the state to be written. What it is given must not change after.
func (s *saver) keep(hello *configv1.Hello, services []topology.ServiceName, resources []*configv1.Resource, now time.Time) {
	s.mu.Lock()
	s.next = func() ([]byte, error) { return encodeState(hello, services, resources, now) }
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
		err = replaceFile(s.file, b)
	}
	if err != nil {
		s.log.ErrorContext(ctx, "configuration not kept on disk", "error", err)
	}
}

// load reads what was kept; nil without an error when there is nothing. A file that can't be used is set aside.
func (s *saver) load(reader *configv1.Hello) (*kept, error) {
	b, err := readFile(s.file)
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
	s.log.Error("kept configuration can't be used", "error", reason, "set_aside", aside) //nolint:sloglint // at start, without a context
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name) //nolint:gosec // the operator names it
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxStateBytes+1))
	if err == nil && len(b) > maxStateBytes {
		err = fmt.Errorf("more than %d bytes", maxStateBytes)
	}
	return b, err
}

// replaceFile writes a file so that after a crash it is the old or the new one, whole.
func replaceFile(name string, b []byte) (err error) {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, filepath.Base(name)+".new-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir) //nolint:gosec // the operator names it
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
