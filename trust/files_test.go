package trust

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func TestSaveSVID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "id")
	if _, err := LoadSVID(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load before the first save: %v, want fs.ErrNotExist", err)
	}
	issuing := rootOf(t, domainA).sub(caTemplate(t, "a.test"))
	expired := issuing.lived(gatewayA, time.Now().Add(-time.Second))
	for _, svid := range []*x509svid.SVID{issuing.svid(gatewayA), issuing.svid(gatewayA), expired} {
		if err := SaveSVID(dir, svid); err != nil {
			t.Fatal(err)
		}
		got, err := LoadSVID(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != gatewayA || len(got.Certificates) != 2 || !got.Certificates[0].Equal(svid.Certificates[0]) || !got.Certificates[1].Equal(issuing.cert) {
			t.Errorf("loaded %v, %d certificates", got.ID, len(got.Certificates))
		}
		if k, ok := got.PrivateKey.Public().(interface{ Equal(x any) bool }); ok && !k.Equal(svid.PrivateKey.Public()) {
			t.Error("loaded another key")
		}
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, svidFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if all := contents(t, dir); len(all) != 1 {
		t.Errorf("%d files, want one", len(all))
	}
}

func TestLoadDamagedSVID(t *testing.T) {
	a := rootOf(t, domainA)
	first, second := a.svid(gatewayA), a.svid(gatewayA)
	for name, damage := range map[string]func(path string, data []byte) error{
		"empty":    func(path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) },
		"cut off":  func(path string, b []byte) error { return os.WriteFile(path, b[:len(b)/2], 0o600) },
		"readable": func(path string, _ []byte) error { return os.Chmod(path, 0o644) },
		"large": func(path string, b []byte) error {
			return os.WriteFile(path, append(b, make([]byte, maxFile)...), 0o600)
		},
		"another key": func(path string, _ []byte) error {
			mixed, err := marshalKeyPair(first.Certificates, second.PrivateKey)
			return errors.Join(err, os.WriteFile(path, mixed, 0o600))
		},
		"a directory": func(path string, _ []byte) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		dir := t.TempDir()
		if err := SaveSVID(dir, first); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, svidFile)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := damage(path, data); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSVID(dir); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want an error that names the file", name, err)
		}
	}
}

func TestSaveSVIDFails(t *testing.T) {
	svid := rootOf(t, domainA).svid(gatewayA)
	if err := SaveSVID("/dev/null/state", svid); err == nil {
		t.Error("saved below a file")
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, svidFile, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := SaveSVID(dir, svid); err == nil {
		t.Error("saved over a directory")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// Readers see a whole file at any time, and of several who make a file where none is, one wins.
func TestWriteFileAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var writing sync.WaitGroup
	won := make(chan byte, 8)
	for i := range cap(won) {
		writing.Go(func() {
			data := bytes.Repeat([]byte{byte('a' + i)}, 1<<16)
			switch err := writeFile(path, data, newFile); {
			case err == nil:
				won <- data[0]
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	writing.Wait()
	close(won)
	if len(won) != 1 {
		t.Fatalf("%d made the file, want one", len(won))
	}
	if data, err := os.ReadFile(path); err != nil || data[0] != <-won {
		t.Errorf("the file is not the winner's: %v", err)
	}
	for i := range 4 {
		writing.Go(func() {
			for range 10 {
				if err := writeFile(path, bytes.Repeat([]byte{byte('a' + i)}, 1<<16), replaceFile); err != nil {
					t.Error(err)
				}
				if data, err := os.ReadFile(path); err != nil || len(data) != 1<<16 || !bytes.Equal(data, bytes.Repeat(data[:1], 1<<16)) {
					t.Errorf("half a file: %d bytes, %v", len(data), err)
				}
			}
		})
	}
	writing.Wait()
	if all := contents(t, dir); len(all) != 1 {
		t.Errorf("%d files left, want one", len(all))
	}
}

func TestParsePEM(t *testing.T) {
	a, svid := rootOf(t, domainA), rootOf(t, domainA).svid(gatewayA)
	one := string(MarshalPEM(a.bundle().Authorities))
	pair, err := marshalKeyPair(a.bundle().Authorities, a.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, data string
		certs      int
	}{
		{"one", one, 1},
		{"two", one + one, 2},
		{"space around", "\n\n" + one + "\n\n", 1},
		{"none", "", 0},
		{"text", one + "and more", 0},
		{"an SVID", string(MarshalPEM(svid.Certificates)), 0},
		{"a key", string(pair), 0},
		{"too many", strings.Repeat(one, MaxAuthorities+1), 0},
		{"too large", one + strings.Repeat("\n", maxFile), 0},
	} {
		certs, err := ParsePEM([]byte(test.data))
		if (err == nil) != (test.certs > 0) || len(certs) != test.certs {
			t.Errorf("%s: %d certificates, %v; want %d", test.name, len(certs), err, test.certs)
		}
	}
}

func TestIdentityChanged(t *testing.T) {
	svid := rootOf(t, domainA).svid(gatewayA)
	i := NewIdentity()
	for _, set := range []*x509svid.SVID{svid, nil, new(x509svid.SVID), svid} {
		changed := i.Changed()
		i.Set(set)
		select {
		case <-changed:
		default:
			t.Errorf("Set(%v) woke nobody", set)
		}
		got, err := i.SVID()
		if want := set == svid; (got == svid) != want || errors.Is(err, ErrNoIdentity) == want {
			t.Errorf("after Set(%v): %v, %v", fmt.Sprintf("%p", set), got, err)
		}
	}
}
