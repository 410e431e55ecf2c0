package federation

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// store is a member's memory on disk. Files, each written whole (writeFile), each with the SHA-256 of its body as first line:
//
//	own                          the number of the last Head of our own, and of the last trust bundle
//	peers/<root fingerprint>/mark   how far the peer had come: the high-water mark, and the records that it was read from
//	peers/<root fingerprint>/cut    the last consistent cut: a Head with its root and all that it names
//
// The two files of a peer back each other: without its cut the mark still refuses what is old, and the cut's Head is a lower
// bound for a mark that is lost. A file that can't be read is set aside as <name>.corrupt, and said so; nothing is guessed from
// it. What is read is verified again, as if it came from the bus, but for its age.
//
// Only the member's owner loop uses it. With an empty dir it keeps nothing.
type store struct {
	dir string
	log *slog.Logger
}

const (
	ownFile  = "own"
	markFile = "mark"
	cutFile  = "cut"
	peersDir = "peers"
	// maxStateFile bounds a file: a cut's records in base64, with room.
	maxStateFile = 4 << 20
)

// savedOwn is what a publisher must not forget.
type savedOwn struct {
	Epoch          uint64    `json:"epoch"`
	Seq            uint64    `json:"seq"`
	Head           []byte    `json:"head_hash"`
	BundleSequence uint64    `json:"bundle_sequence"`
	Bundle         []byte    `json:"bundle_hash"`
	Saved          time.Time `json:"saved"`
}

// savedMark is how far a peer had come.
type savedMark struct {
	Epoch          uint64    `json:"epoch"`
	Seq            uint64    `json:"seq"`
	HeadHash       []byte    `json:"head_hash"`
	BundleSequence uint64    `json:"bundle_sequence"`
	BundleHash     []byte    `json:"bundle_hash"`
	Quarantine     string    `json:"quarantine,omitempty"`
	Received       time.Time `json:"received"`
	Root           []byte    `json:"root,omitempty"` // envelopes
	Head           []byte    `json:"head,omitempty"`
}

// savedCut is a consistent cut.
type savedCut struct {
	Received time.Time `json:"received"`
	Root     []byte    `json:"root"`
	Head     []byte    `json:"head"`
	Parts    [][]byte  `json:"parts"`
}

func openStore(dir string, log *slog.Logger) (*store, error) {
	s := &store{dir: dir, log: log}
	if dir == "" {
		return s, nil
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	return s, makeDir(filepath.Join(dir, peersDir))
}

func (s *store) peerDir(f Fingerprint) string {
	return filepath.Join(s.dir, peersDir, hex.EncodeToString(f[:]))
}

func (s *store) loadOwn() (v savedOwn) {
	s.load(s.dir, ownFile, &v)
	return v
}

func (s *store) saveOwn(v savedOwn) error { return s.save(s.dir, ownFile, v) }

func (s *store) loadMark(f Fingerprint) (v savedMark, ok bool) {
	ok = s.load(s.peerDir(f), markFile, &v)
	return v, ok
}

func (s *store) saveMark(f Fingerprint, v savedMark) error { return s.savePeer(f, markFile, v) }

func (s *store) loadCut(f Fingerprint) (v savedCut, ok bool) {
	ok = s.load(s.peerDir(f), cutFile, &v)
	return v, ok
}

func (s *store) saveCut(f Fingerprint, v savedCut) error { return s.savePeer(f, cutFile, v) }

// forget drops what a peer had said. Its mark stays, so that the peer can't be made to go back by removing and adding it.
func (s *store) forget(f Fingerprint) error {
	if s.dir == "" {
		return nil
	}
	dir := s.peerDir(f)
	err := os.Remove(filepath.Join(dir, cutFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mark, ok := s.loadMark(f)
	if !ok {
		return nil
	}
	mark.Quarantine, mark.Root, mark.Head = "", nil, nil
	return s.saveMark(f, mark)
}

func (s *store) savePeer(f Fingerprint, name string, v any) error {
	if s.dir == "" {
		return nil
	}
	dir := s.peerDir(f)
	if _, err := os.Stat(dir); err != nil {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	return s.save(dir, name, v)
}

func (s *store) save(dir, name string, v any) error {
	if s.dir == "" {
		return nil
	}
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	data := append([]byte(hex.EncodeToString(sum[:])), '\n')
	return writeFile(dir, name, append(data, body...))
}

// load reports whether there was something to load, and it was sound.
func (s *store) load(dir, name string, into any) bool {
	if s.dir == "" {
		return false
	}
	err := read(dir, name, into)
	if err == nil {
		return true
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.setAside(dir, name, err)
	}
	return false
}

// setAside moves a file out of the way, for somebody to look at.
func (s *store) setAside(dir, name string, why error) {
	path := filepath.Join(dir, name)
	s.log.Error("federation state on disk is damaged; set aside and asked for anew", "file", path, "error", why)
	if err := os.Rename(path, path+".corrupt"); err != nil {
		s.log.Error("damaged federation state could not be set aside", "file", path, "error", err)
	}
}

func read(dir, name string, into any) error {
	data, err := readSmall(dir, name, maxStateFile)
	if err != nil {
		return err
	}
	line, body, ok := bytes.Cut(data, []byte{'\n'})
	sum := sha256.Sum256(body)
	if !ok || string(line) != hex.EncodeToString(sum[:]) {
		return errors.New("its checksum does not fit")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("its content does not fit: %w", err)
	}
	return nil
}
