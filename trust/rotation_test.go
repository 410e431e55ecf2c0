package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Issuing CAs roll over at half-life while everything issued before stays good.
func TestIssuingRollOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
		defer run(t, a.Run)()
		roots := a.Roots()
		var live [][]*x509.Certificate
		issuers := map[string]time.Time{}
		for range 3 * 24 * 6 { // three days, every ten minutes
			chain := issueTo(t, a, gatewayA)
			if _, known := issuers[chain[1].SerialNumber.String()]; !known {
				issuers[chain[1].SerialNumber.String()] = time.Now()
			}
			if chain[0].NotAfter.After(chain[1].NotAfter) {
				t.Fatal("an SVID outlives its issuing CA")
			}
			if left := time.Until(chain[0].NotAfter); left != time.Hour {
				t.Fatalf("an SVID for %v: the issuing CA was renewed too late", left)
			}
			live = append(live, chain)
			live = slices.DeleteFunc(live, func(c []*x509.Certificate) bool { return !time.Now().Before(c[0].NotAfter) })
			for _, c := range live {
				if err := verifyWith(roots, c); err != nil {
					t.Fatalf("gap: %v", err)
				}
			}
			time.Sleep(10 * time.Minute)
		}
		if n := len(issuers); n != 3 {
			t.Errorf("%d issuing CAs in three days, want one a day", n)
		}
	})
}

// A year of an authority that is restarted now and then, seen by a peer that hears of new roots a day late only: no SVID is
// ever refused, and no root is published for longer than it lives.
func TestRootRollOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cfg := AuthorityConfig{Dir: dir}
		a := openAuthority(t, cfg)
		stop := run(t, a.Run)
		changed := a.Changed()
		type version struct {
			at    time.Time
			roots []*x509.Certificate
		}
		published := []version{{time.Now().Add(-48 * time.Hour), a.Roots()}}
		seen := map[string]bool{}
		var live [][]*x509.Certificate
		for step := range 365 * 2 { // every twelve hours
			select {
			case <-changed:
				published = append(published, version{time.Now(), a.Roots()})
				changed = a.Changed()
			default:
				if !slices.EqualFunc(published[len(published)-1].roots, a.Roots(), (*x509.Certificate).Equal) {
					t.Fatal("roots changed and nobody was told")
				}
			}
			if step%37 == 0 {
				stop()
				before := a.Roots()
				a = openAuthority(t, cfg)
				if diff := cmp.Diff(names(before), names(a.Roots())); diff != "" {
					t.Fatalf("roots after a restart (-before +after):\n%s", diff)
				}
				stop = run(t, a.Run)
				changed = a.Changed()
			}
			for _, r := range a.Roots() {
				seen[r.SerialNumber.String()] = true
				if !time.Now().Before(r.NotAfter) {
					t.Fatal("a root is published that has ended")
				}
			}
			chain := issueTo(t, a, gatewayA)
			if left := time.Until(chain[0].NotAfter); left != time.Hour {
				t.Fatalf("day %d: an SVID for %v", step/2, left)
			}
			live = append(live, chain)
			live = slices.DeleteFunc(live, func(c []*x509.Certificate) bool { return !time.Now().Before(c[0].NotAfter) })
			late := published[0].roots
			for _, v := range published {
				if v.at.Before(time.Now().Add(-24 * time.Hour)) {
					late = v.roots
				}
			}
			for _, c := range live {
				if err := errors.Join(verifyWith(a.Roots(), c), verifyWith(late, c)); err != nil {
					t.Fatalf("day %d: gap: %v", step/2, err)
				}
			}
			time.Sleep(12*time.Hour - time.Second*time.Duration(step%7))
		}
		stop()
		if n := len(seen); n < 6 || n > 9 {
			t.Errorf("%d roots in a year", n)
		}
	})
}

func names(roots []*x509.Certificate) []string {
	var serials []string
	for _, r := range roots {
		serials = append(serials, fmt.Sprintf("%x", r.SerialNumber))
	}
	slices.Sort(serials)
	return serials
}

// Without Run, as after a suspend, Issue does what is due.
func TestIssueAfterSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
		for range 30 {
			time.Sleep(7 * 24 * time.Hour)
			chain := issueTo(t, a, gatewayA)
			if left := time.Until(chain[0].NotAfter); left != time.Hour {
				t.Errorf("an SVID for %v", left)
			}
			if err := verifyWith(a.Roots(), chain); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(200 * 24 * time.Hour) // past root and successor
		if chain := issueTo(t, a, gatewayA); verifyWith(a.Roots(), chain) != nil {
			t.Error("an authority that runs does not recover from a long sleep")
		}
	})
}

// The process may die between any two writes of a roll-over; what it leaves opens, publishes every root that something
// living was signed under, and goes on.
func TestActivationCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cfg := AuthorityConfig{Dir: dir}
		a := openAuthority(t, cfg)
		first := a.Roots()[0]
		time.Sleep(46 * 24 * time.Hour)
		issueTo(t, a, gatewayA)
		if n := len(a.Roots()); n != 2 {
			t.Fatalf("%d roots after half of the first one's life, want 2", n)
		}
		time.Sleep(21*24*time.Hour + 8*time.Hour) // an hour before the turn
		early := issueTo(t, a, gatewayA)
		prepared := contents(t, dir)
		time.Sleep(6 * time.Hour)
		issueTo(t, a, gatewayA)
		activated := contents(t, dir)
		if _, ok := activated[nextRootFile]; ok || activated[rootFile] != prepared[nextRootFile] {
			t.Fatal("the successor did not take over")
		}
		for name, files := range map[string]map[string]string{
			"before":                      prepared,
			"predecessor written":         merge(prepared, map[string]string{previousRootFile: activated[previousRootFile]}),
			"successor renamed":           {rootFile: activated[rootFile], previousRootFile: activated[previousRootFile], issuingFile: prepared[issuingFile]},
			"issuing CA lost":             {rootFile: activated[rootFile], previousRootFile: activated[previousRootFile]},
			"a temporary file left":       merge(activated, map[string]string{".issuing.pem.123": "half a f"}),
			"successor not prepared ever": {rootFile: prepared[rootFile], issuingFile: prepared[issuingFile]},
		} {
			crashed := t.TempDir()
			for file, data := range files {
				if err := os.WriteFile(filepath.Join(crashed, file), []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			again, err := OpenAuthority(AuthorityConfig{TrustDomain: domainA, Dir: crashed})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if !slices.ContainsFunc(again.Roots(), first.Equal) {
				t.Errorf("%s: the first root is no longer published", name)
			}
			if all := names(again.Roots()); len(slices.Compact(all)) != len(again.Roots()) {
				t.Errorf("%s: a root is published twice", name)
			}
			late := issueTo(t, again, gatewayA)
			if err := late[1].CheckSignatureFrom(again.Roots()[0]); err != nil {
				t.Errorf("%s: issued under another root than the one in use: %v", name, err)
			}
			if err := verifyWith(again.Roots(), late); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			// Peers who know the roots from before the crash.
			if name != "successor not prepared ever" {
				if err := verifyWith(a.Roots(), late); err != nil {
					t.Errorf("%s: by those who heard before: %v", name, err)
				}
			}
			if err := verifyAt(again.Roots(), early, early[0].NotAfter); err != nil {
				t.Errorf("%s: what was issued before: %v", name, err)
			}
		}
	})
}

func merge(parts ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range parts {
		maps.Copy(all, m)
	}
	return all
}

func verifyAt(roots, chain []*x509.Certificate, now time.Time) error {
	b := NewBundles()
	b.Set(domainA, Bundle{Authorities: roots})
	_, err := b.Verify(chain, now)
	return err
}

// A disk that can't be written ends nothing that lives: issuing CAs go on in memory, roots stay as they are until their end.
func TestAuthorityDiskGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "authority")
		lines := new(logLines)
		a := openAuthority(t, AuthorityConfig{Dir: dir, Log: lines.logger()})
		defer run(t, a.Run)()
		roots := a.Roots()
		aside := dir + ".aside"
		if err := os.Rename(dir, aside); err != nil {
			t.Fatal(err)
		}
		for day := range 80 {
			chain := issueTo(t, a, gatewayA)
			if err := verifyWith(roots, chain); err != nil || time.Until(chain[0].NotAfter) != time.Hour {
				t.Fatalf("day %d: %v, an SVID for %v", day, err, time.Until(chain[0].NotAfter))
			}
			time.Sleep(24 * time.Hour)
		}
		if n := lines.count("authority not renewed"); n != 1 {
			t.Errorf("%d lines of failure in 80 days, want one", n)
		}
		if n := lines.count("but not kept on disk"); n < 78 || n > 82 {
			t.Errorf("%d lines of issuing CAs in memory, want one a day", n)
		}
		if err := os.Rename(aside, dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := len(a.Roots()); n != 2 {
			t.Errorf("%d roots after the disk is back, want the successor too", n)
		}
		if lines.count("authority renewed again") != 1 {
			t.Errorf("log:\n%s", lines)
		}
		openAuthority(t, AuthorityConfig{Dir: dir})
	})
}

// The default life of roots, as a calendar.
func TestRootCalendar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
		defer run(t, a.Run)()
		root := func() string { return fmt.Sprintf("%x", a.Roots()[0].SerialNumber) }
		start, last, roots := time.Now(), root(), a.Roots()
		var got []string
		for range 100 * 24 {
			changed := a.Changed()
			time.Sleep(time.Hour)
			synctest.Wait()
			select {
			case <-changed:
				if slices.EqualFunc(roots, a.Roots(), (*x509.Certificate).Equal) {
					continue // a JWT key
				}
				roots = a.Roots()
				day := time.Since(start).Hours() / 24
				got = append(got, fmt.Sprintf("day %.0f: %d roots, another in use: %v", day, len(a.Roots()), root() != last))
				last = root()
			default:
			}
		}
		want := []string{
			"day 45: 2 roots, another in use: false",
			"day 68: 2 roots, another in use: true",
			"day 68: 1 roots, another in use: false", // nothing under the first lives any more
			"day 90: 2 roots, another in use: false",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("calendar (-want +got):\n%s", diff)
		}
	})
}

// Many ask at once, also at the moment of a renewal.
func TestIssueConcurrently(t *testing.T) {
	a := openAuthority(t, AuthorityConfig{Dir: t.TempDir(), SVIDLifetime: time.Second, IssuingLifetime: 2 * time.Second})
	stop := run(t, a.Run)
	_, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 8)
	for range cap(done) {
		go func() {
			var failed error
			for range 50 {
				if _, err := a.Issue(csr, gatewayA); err != nil {
					failed = err
				}
			}
			done <- failed
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	stop()
}

// An authority that comes back late gives its new root time to be heard of, as long as the old one has it.
func TestLateSuccessor(t *testing.T) {
	for off, wait := range map[time.Duration]time.Duration{
		75 * 24 * time.Hour:              48 * time.Hour,
		88 * 24 * time.Hour:              24 * time.Hour, // then the old one has a day left, and its issuing CA no more
		89*24*time.Hour + 12*time.Hour:   0,
		45*24*time.Hour + 12*time.Minute: 67*24*time.Hour + 12*time.Hour - 45*24*time.Hour - 12*time.Minute, // in time
	} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			first := openAuthority(t, AuthorityConfig{Dir: dir}).Roots()[0]
			time.Sleep(off)
			back := time.Now()
			a := openAuthority(t, AuthorityConfig{Dir: dir})
			defer run(t, a.Run)()
			if n := len(a.Roots()); n != 2 {
				t.Fatalf("off for %v: %d roots, want 2", off, n)
			}
			for a.Roots()[0].Equal(first) {
				changed := a.Changed()
				if a.Roots()[0].Equal(first) {
					<-changed
				}
			}
			if got := time.Since(back); got != wait {
				t.Errorf("off for %v: successor in use after %v, want %v", off, got, wait)
			}
		})
	}
}
