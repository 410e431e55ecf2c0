package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
)

const (
	maxTimelineFile = 4 << 20
	timelineEvery   = 10 * time.Second // that it is written, if there is news
)

// keptEvent is one event on disk.
type keptEvent struct {
	admin.TimelineEvent

	By string `json:"by,omitempty"`
}

// read takes up what was kept. A timeline that can't be read is lost, and nothing else is.
func (t *timeline) read(path string) error {
	data, err := atomicfile.Read(path, maxTimelineFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var all []keptEvent
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil {
		return fmt.Errorf("control: timeline: %s: %w", path, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range all[max(0, len(all)-maxEvents):] {
		t.add(&happened{TimelineEvent: k.TimelineEvent, by: k.By})
		t.all[len(t.all)-1].Cluster = t.cluster
	}
	t.dirty = false
	return nil
}

// write keeps the latest events, as many as the file may hold, if there is news.
func (t *timeline) write(path string) error {
	t.mu.Lock()
	if !t.dirty {
		t.mu.Unlock()
		return nil
	}
	t.dirty = false
	var lines [][]byte
	size := 2
	var err error
	for _, h := range slices.Backward(t.all) {
		var line []byte
		if line, err = json.Marshal(keptEvent{h.TimelineEvent, h.by}); err != nil {
			break
		}
		if size += len(line) + 2; size > maxTimelineFile {
			break
		}
		lines = append(lines, line)
	}
	t.mu.Unlock()
	data := []byte("[\n")
	for i, line := range slices.Backward(lines) {
		data = append(data, line...)
		if i > 0 {
			data = append(data, ',')
		}
		data = append(data, '\n')
	}
	if err == nil {
		err = atomicfile.Write(path, append(data, "]\n"...), 0o600)
	}
	if err != nil {
		t.mu.Lock()
		t.dirty = true
		t.mu.Unlock()
		return fmt.Errorf("control: timeline: %w", err)
	}
	return nil
}

// keepTimeline writes the timeline now and then, and at the end.
func (c *Control) keepTimeline(ctx context.Context) error {
	ticker := time.NewTicker(timelineEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
		if err := c.timeline.write(c.path(timelineFile)); err != nil {
			c.cfg.Log.ErrorContext(ctx, "timeline not written", "error", err)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}
