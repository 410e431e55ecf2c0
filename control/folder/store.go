package folder

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

// Limits of what we wrote ourselves.
const (
	maxKept  = strictyaml.MaxFile + 64<<10 // a manifest and its path
	maxBirth = 16 << 20
)

const (
	keptFolder = "last-good"
	birthsFile = "exports-first-seen.json"
)

// store keeps over restarts what the folder itself does not say: the last good version of each manifest, and when each export was
// first seen. The zero dir keeps nothing.
type store struct {
	dir    string
	kept   map[string][sha256.Size]byte // file name → hash of its last good version
	births map[string]time.Time         // object → first seen
	dirty  bool                         // births have changed
}

func openStore(dir string) (*store, error) {
	s := &store{dir: dir, kept: make(map[string][sha256.Size]byte), births: make(map[string]time.Time)}
	if dir == "" {
		return s, nil
	}
	if err := os.MkdirAll(filepath.Join(dir, keptFolder), 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, keptFolder))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		// One that can't be read counts as none: it is needed only if its manifest is bad too.
		if name, data, ok := s.readKept(e.Name()); ok {
			s.kept[name] = sha256.Sum256(data)
		}
	}
	data, err := atomicfile.Read(filepath.Join(dir, birthsFile), maxBirth)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s.births)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, birthsFile), err)
	}
	return s, nil
}

// A kept version is the manifest's path, a line feed, and its bytes.
func (s *store) readKept(entry string) (name string, data []byte, ok bool) {
	if strings.HasPrefix(entry, ".") {
		return "", nil, false
	}
	raw, err := atomicfile.Read(filepath.Join(s.dir, keptFolder, entry), maxKept)
	if err != nil {
		return "", nil, false
	}
	head, body, ok := strings.Cut(string(raw), "\n")
	return head, []byte(body), ok && keptName(head) == entry
}

func keptName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// good returns the last good version of a manifest, of an earlier run.
func (s *store) good(name string) ([]byte, bool) {
	if _, ok := s.kept[name]; !ok {
		return nil, false
	}
	_, data, ok := s.readKept(keptName(name))
	return data, ok
}

// keep keeps data as the last good version of a manifest.
func (s *store) keep(name string, data []byte) error {
	sum := sha256.Sum256(data)
	if s.dir == "" || s.kept[name] == sum {
		return nil
	}
	raw := append([]byte(name+"\n"), data...)
	if err := atomicfile.Write(filepath.Join(s.dir, keptFolder, keptName(name)), raw, 0o600); err != nil {
		return err
	}
	s.kept[name] = sum
	return nil
}

// forget drops what is kept of a manifest that was removed.
func (s *store) forget(name string) error {
	if _, ok := s.kept[name]; !ok {
		return nil
	}
	delete(s.kept, name)
	err := os.Remove(filepath.Join(s.dir, keptFolder, keptName(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// born returns when an object was first seen: now, or earlier as its file says, unless it is known already.
func (s *store) born(object string, modified, now time.Time) time.Time {
	if t, ok := s.births[object]; ok {
		return t
	}
	t := now
	if !modified.IsZero() && modified.Before(now) {
		t = modified
	}
	t = t.UTC().Truncate(time.Second)
	s.births[object] = t
	s.dirty = true
	return t
}

// retain forgets the births of all other objects, and writes the rest down.
func (s *store) retain(objects map[string]struct{}) error {
	for o := range s.births {
		if _, there := objects[o]; !there {
			delete(s.births, o)
			s.dirty = true
		}
	}
	if !s.dirty || s.dir == "" {
		return nil
	}
	data, err := json.MarshalIndent(s.births, "", "  ")
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(s.dir, birthsFile), append(data, '\n'), 0o600); err != nil {
		return err
	}
	s.dirty = false
	return nil
}
