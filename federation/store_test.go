package federation

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRecall(t *testing.T) {
	a := newAuthor(t, "us")
	now := epochStart
	first, second := a.tell(1, now, nil), a.tell(2, now.Add(time.Second), nil)
	root := a.memberRoot(nil)
	truncate := func(t *testing.T, path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data[:len(data)/2], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flip := func(t *testing.T, path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)*2/3] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	empty := func(t *testing.T, path string) {
		t.Helper()
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(t *testing.T, path string) {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		what    string
		damage  map[string]func(*testing.T, string)
		version int    // in the view after the restart
		old     Reason // what the first head meets with, given again after the restart
		last    Reason // likewise the second
		loud    bool   // an error is logged
	}{
		{"sound", nil, 2, "duplicate_or_replayed", "duplicate", false},
		{"mark cut short", map[string]func(*testing.T, string){markFile: truncate}, 2, Replayed, "duplicate", true},
		{"mark with a flipped bit", map[string]func(*testing.T, string){markFile: flip}, 2, Replayed, "duplicate", true},
		{"mark empty", map[string]func(*testing.T, string){markFile: empty}, 2, Replayed, "duplicate", true},
		{"mark gone", map[string]func(*testing.T, string){markFile: remove}, 2, Replayed, "duplicate", true},
		{"cut cut short", map[string]func(*testing.T, string){cutFile: truncate}, 0, Replayed, "duplicate", true},
		{"cut with a flipped bit", map[string]func(*testing.T, string){cutFile: flip}, 0, Replayed, "duplicate", true},
		{"cut gone", map[string]func(*testing.T, string){cutFile: remove}, 0, Replayed, "duplicate", false},
		// With both gone nothing is left to compare to: only the Head's own expiry bounds what may be told again.
		{"both gone", map[string]func(*testing.T, string){cutFile: flip, markFile: flip}, 0, "", "", true},
	} {
		t.Run(test.what, func(t *testing.T) {
			dir := t.TempDir()
			p := newPeer(t, a, dir)
			give(t, p, now, root)
			give(t, p, now, first.all()...)
			give(t, p, now, second.all()...)
			peerDir := p.store.peerDir(a.spec().RootFingerprint)
			for name, damage := range test.damage {
				damage(t, filepath.Join(peerDir, name))
			}
			var said bytes.Buffer
			s, err := openStore(dir, slog.New(slog.NewTextHandler(&said, nil)))
			if err != nil {
				t.Fatal(err)
			}
			p = recall(a.spec(), s, Thresholds{}, s.log)
			if got := versionOf(t, p.view(now)); got != test.version {
				t.Errorf("version %d, want %d", got, test.version)
			}
			if loud := strings.Contains(said.String(), "level=ERROR"); loud != test.loud {
				t.Errorf("said %q", said.String())
			}
			for name := range test.damage {
				_, err := os.Stat(filepath.Join(peerDir, name+".corrupt"))
				if gone := errors.Is(err, fs.ErrNotExist); gone != strings.HasSuffix(test.what, "gone") && test.what != "both gone" {
					t.Errorf("%s set aside: %v", name, !gone)
				}
			}
			give(t, p, now, root)
			got := give(t, p, now, first.head)
			if got != test.old && (test.old != "duplicate_or_replayed" || got != Replayed && got != "duplicate") {
				t.Errorf("the first head: %q, want %q", got, test.old)
			}
			if got := give(t, p, now, second.head); got != test.last {
				t.Errorf("the second head: %q, want %q", got, test.last)
			}
			give(t, p, now, second.parts...)
			if got := versionOf(t, p.view(now)); got != 2 {
				t.Errorf("version %d in the end", got)
			}
		})
	}
}

// TestRecallStranger: what is on disk is believed no more than what comes from the bus.
func TestRecallStranger(t *testing.T) {
	a, other := newAuthor(t, "us"), newAuthor(t, "xx")
	now := epochStart
	dir := t.TempDir()
	p := newPeer(t, other, dir)
	give(t, p, now, other.memberRoot(nil))
	give(t, p, now, other.tell(1, now, nil).all()...)
	if err := os.Rename(p.store.peerDir(other.spec().RootFingerprint), p.store.peerDir(a.spec().RootFingerprint)); err != nil {
		t.Fatal(err)
	}
	p = newPeer(t, a, dir)
	if v := p.view(now); v.Freshness != Waiting || p.root != nil || p.newest != nil {
		t.Errorf("%s: took over what another has signed", v.Freshness)
	}
}

// TestNotStored: what could not be written is not used, and the next that can be is.
func TestNotStored(t *testing.T) {
	a := newAuthor(t, "us")
	now := epochStart
	dir := t.TempDir()
	p := newPeer(t, a, dir)
	give(t, p, now, a.memberRoot(nil))
	give(t, p, now, a.tell(1, now, nil).all()...)
	peerDir := p.store.peerDir(a.spec().RootFingerprint)
	if err := os.Rename(peerDir, peerDir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(peerDir, nil, 0o600); err != nil { // a file where the folder was
		t.Fatal(err)
	}
	second := a.tell(2, now.Add(time.Second), nil)
	if got := give(t, p, now, second.head); got != NotStored {
		t.Errorf("a head that could not be stored: %q", got)
	}
	if got := give(t, p, now, second.parts[1]); got != Unnamed {
		t.Errorf("and its part: %q", got)
	}
	if v := p.view(now); versionOf(t, v) != 1 || p.at.seq == second.seq {
		t.Errorf("version %d", versionOf(t, v))
	}
	if err := os.Remove(peerDir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(peerDir+".away", peerDir); err != nil {
		t.Fatal(err)
	}
	give(t, p, now, second.all()...)
	if v := p.view(now); versionOf(t, v) != 2 {
		t.Errorf("version %d", versionOf(t, v))
	}
}

// TestMarkBeforeUse looks at the disk at each step: the mark there is never below what is in force.
func TestMarkBeforeUse(t *testing.T) {
	a := newAuthor(t, "us")
	now := epochStart
	dir := t.TempDir()
	p := newPeer(t, a, dir)
	give(t, p, now, a.memberRoot(nil))
	for version := 1; version < 5; version++ {
		for _, r := range a.tell(version, now.Add(time.Duration(version)*time.Second), nil).all() {
			give(t, p, now, r)
			saved, ok := p.store.loadMark(a.spec().RootFingerprint)
			if at := (mark{saved.Epoch, saved.Seq}); !ok || at != p.at {
				t.Fatalf("the mark on disk is %v, in memory %v", at, p.at)
			}
			// Crash here: the restart holds a whole cut, the last or the one before.
			if got := versionOf(t, newPeer(t, a, dir).view(now)); got != version && got != version-1 {
				t.Fatalf("version %d after a crash in version %d", got, version)
			}
		}
	}
}

// TestWriteFile: what a crash leaves behind of a write that didn't finish is of no account, and a failed write leaves nothing.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	if err := writeFile(dir, "x", []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x.tmp-1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(dir, "x", []byte("new")); err != nil {
		t.Fatal(err)
	}
	if data, err := readSmall(dir, "x", 10); err != nil || string(data) != "new" {
		t.Errorf("%q, %v", data, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "x")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := readSmall(dir, "x", 2); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("over the limit: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "y"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(dir, "y", []byte("new")); err == nil {
		t.Error("replaced a folder")
	}
	left, err := filepath.Glob(filepath.Join(dir, "y.tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
