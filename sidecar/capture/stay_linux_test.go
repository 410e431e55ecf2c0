package capture

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// TestStay: rules that somebody takes out return, and none are left at the end.
func TestStay(t *testing.T) {
	rules := Rules{To: prefixes("241.0.0.0/8", "fd00:241::/64"), Port: 15006, SkipUsers: []uint32{15000}}
	const whole = 3 // one for the user, one a prefix
	count := func(want int, when string) {
		t.Helper()
		if n, err := standing(); n != want || err != nil {
			t.Errorf("%s: %d rules, %v; want %d", when, n, err, want)
		}
	}
	namespaces(t, func() {
		count(0, "before")
		if err := Install(rules); err != nil {
			t.Error(err)
			return
		}
		count(whole, "in force")
		for _, harm := range []struct {
			what     string
			do       func(*nftables.Conn)
			restored bool
		}{
			{"nothing", func(*nftables.Conn) {}, false},
			{"nft delete table inet isthmus", func(c *nftables.Conn) { c.DelTable(&nftables.Table{Name: Table, Family: nftables.TableFamilyINet}) }, true},
			{"nft flush table inet isthmus", func(c *nftables.Conn) { c.FlushTable(&nftables.Table{Name: Table, Family: nftables.TableFamilyINet}) }, true},
			{"nft flush ruleset", func(c *nftables.Conn) { c.FlushRuleset() }, true},
		} {
			c, err := nftables.New()
			if err == nil {
				harm.do(c)
				err = c.Flush()
			}
			if err != nil {
				t.Errorf("%s: %v", harm.what, err)
			}
			if restored, err := keep(rules, whole); restored != harm.restored || err != nil {
				t.Errorf("%s: restored %t, %v", harm.what, restored, err)
			}
			count(whole, "after "+harm.what)
		}
		// All on this thread, which is in the namespace: so the end comes first.
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := Stay(ended, rules, "", slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
		count(0, "at the end")
	})
}

// TestStayFollowsAFile: what the file names is captured from then on, and no longer once it doesn't.
func TestStayFollowsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "capture")
	namespaces(t, func() {
		ip(t, "link set lo up")
		ip(t, "addr add 10.1.0.1/24 dev lo")
		s := &stay{base: Rules{To: prefixes("241.0.0.0/8"), Port: 15006, SkipUsers: []uint32{15000}}, file: file, log: slog.New(slog.DiscardHandler)}
		for _, step := range []struct {
			write string
			want  int // rules, beside that of the user
		}{
			{"", 1},
			{"10.2.0.0/16\nfd00:2::/56\n", 3},
			{"10.2.0.0/16\n10.1.0.0/16\n", 2}, // the second is this machine's
			{"nonsense", 2},                   // says nothing: the last word counts
			{"\n", 1},
		} {
			if step.write != "" {
				if err := os.WriteFile(file, []byte(step.write), 0o600); err != nil {
					t.Error(err)
				}
			}
			if err := s.look(t.Context()); err != nil {
				t.Error(err)
			}
			if n, err := standing(); n != step.want+1 || err != nil {
				t.Errorf("%q: %d rules, %v; want %d", step.write, n, err, step.want+1)
			}
		}
		if err := Remove(); err != nil {
			t.Error(err)
		}
	})
}

// TestReadFileEnds: the node proxy, which has no right of its own, writes the file; whatever is there instead, reading it ends.
func TestReadFileEnds(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	var errs [5]error
	errs[0] = unix.Mkfifo(in("fifo"), 0o600)
	errs[1] = os.Symlink("/dev/zero", in("link"))
	errs[2] = os.Mkdir(in("folder"), 0o700)
	errs[3] = os.WriteFile(in("long"), make([]byte, maxFile+1), 0o600)
	errs[4] = os.WriteFile(in("full"), make([]byte, maxFile), 0o600)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		in("fifo"): "not a regular file", in("link"): "symbolic links", in("folder"): "not a regular file", in("long"): "longer than",
		"/dev/zero": "not a regular file", in("none"): "no such file", in("full"): "",
	} {
		data, err := readFile(name)
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d bytes, %v, want %q", name, len(data), err, want)
		}
	}
}
