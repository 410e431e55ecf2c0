package federation

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func openTestKeys(t *testing.T, dir string) *Keys {
	t.Helper()
	k, err := OpenKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func stateOf(t *testing.T, k *Keys, td spiffeid.TrustDomain, now time.Time) statement {
	t.Helper()
	s, err := k.statement(td, now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	td := spiffeid.RequireTrustDomainFromString("eu.example.org")
	now := epochStart
	k := openTestKeys(t, dir)
	first := stateOf(t, k, td, now)
	if first.content.epoch != 1 || !first.record.verify(public(k.root)) || !first.content.notAfter.Equal(now.Add(RootLifetime)) {
		t.Errorf("%+v", first.content)
	}
	if f, err := ParseFingerprint(k.Fingerprint().String()); err != nil || f != k.Fingerprint() || f != FingerprintOf(first.content.rootKey) {
		t.Errorf("fingerprint %s: %v", k.Fingerprint(), err)
	}
	if again := stateOf(t, k, td, now.Add(RootLifetime-rootRenewal-time.Hour)); again.record.hash != first.record.hash {
		t.Error("a new epoch before its time")
	}
	// After a restart all is as before.
	o := openTestKeys(t, dir)
	again := stateOf(t, o, td, now)
	if o.Fingerprint() != k.Fingerprint() || o.BusKey() != k.BusKey() || again.record.hash != first.record.hash || !again.signing.Equal(first.signing) {
		t.Error("other keys after a restart")
	}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// It is renewed in good time, and another domain is another epoch.
	second := stateOf(t, o, td, now.Add(RootLifetime-rootRenewal+time.Hour))
	if second.content.epoch != 2 || second.signing.Equal(first.signing) {
		t.Errorf("epoch %d", second.content.epoch)
	}
	third := stateOf(t, o, spiffeid.RequireTrustDomainFromString("other.example.org"), now)
	if third.content.epoch != 3 {
		t.Errorf("epoch %d", third.content.epoch)
	}
	if err = o.Rotate(td, now); err != nil || o.present().content.epoch != 4 {
		t.Errorf("epoch %d: %v", o.present().content.epoch, err)
	}
	keys, err := filepath.Glob(filepath.Join(dir, "signing-*"))
	if err != nil || len(keys) != 1 {
		t.Errorf("signing keys left: %v, %v", keys, err)
	}
}

// TestKeysOffline: with the root key elsewhere, all works until its last word ends.
func TestKeysOffline(t *testing.T) {
	dir := t.TempDir()
	td := spiffeid.RequireTrustDomainFromString("eu.example.org")
	now := epochStart
	k := openTestKeys(t, dir)
	first := stateOf(t, k, td, now)
	if err := os.Remove(filepath.Join(dir, rootKeyFile)); err != nil {
		t.Fatal(err)
	}
	o := openTestKeys(t, dir)
	if o.Fingerprint() != k.Fingerprint() {
		t.Error("another fingerprint")
	}
	if s := stateOf(t, o, td, now.Add(RootLifetime-time.Hour)); s.record.hash != first.record.hash {
		t.Error("another member root")
	}
	if _, err := o.statement(td, now.Add(RootLifetime)); err == nil {
		t.Error("stated something after the end of the last member root")
	}
	if err := o.Rotate(td, now); err == nil {
		t.Error("rotated without the root key")
	}
}

func TestKeysDamaged(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("eu.example.org")
	for what, damage := range map[string]func(t *testing.T, dir string) error{
		"bus key gone":     func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, busKeyFile)) },
		"signing key gone": func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, signingKeyFile(1))) },
		"root key of another": func(t *testing.T, dir string) error {
			t.Helper()
			_, err := makeKey(dir, rootKeyFile)
			return err
		},
		"signing key of another": func(t *testing.T, dir string) error {
			t.Helper()
			_, err := makeKey(dir, signingKeyFile(1))
			return err
		},
		"key that others can read": func(_ *testing.T, dir string) error { return os.Chmod(filepath.Join(dir, busKeyFile), 0o644) },
		"key cut short":            func(_ *testing.T, dir string) error { return os.Truncate(filepath.Join(dir, rootKeyFile), 40) },
		"key grown":                func(_ *testing.T, dir string) error { return os.Truncate(filepath.Join(dir, rootKeyFile), 1<<20) },
		"member root cut short":    func(_ *testing.T, dir string) error { return os.Truncate(filepath.Join(dir, memberRootFile), 40) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			stateOf(t, openTestKeys(t, dir), td, epochStart)
			if err := damage(t, dir); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenKeys(dir); err == nil || !strings.HasPrefix(err.Error(), "federation: keys in ") {
				t.Errorf("opened: %v", err)
			}
		})
	}
}

// TestKeysBegun: a first start that was interrupted goes on.
func TestKeysBegun(t *testing.T) {
	dir := t.TempDir()
	k := openTestKeys(t, dir)
	if err := os.Remove(filepath.Join(dir, rootKeyFile)); err != nil { // it is made last
		t.Fatal(err)
	}
	if o := openTestKeys(t, dir); o.BusKey() != k.BusKey() {
		t.Error("another bus key")
	}
}

func TestFingerprint(t *testing.T) {
	for _, s := range []string{
		"", "sha256:", "sha256:00", "SHA256:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("A", 64),
		"sha256:" + strings.Repeat("0", 65), strings.Repeat("0", 64), "sha256:" + strings.Repeat("g", 64),
	} {
		if f, err := ParseFingerprint(s); err == nil {
			t.Errorf("%q is %s", s, f)
		}
	}
}
