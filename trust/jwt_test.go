package trust

import (
	"crypto"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
)

// readJWT reads a token as go-spiffe does, which is somebody else's code.
func readJWT(token string, keys map[string]crypto.PublicKey, audience ...string) (*jwtsvid.SVID, error) {
	return jwtsvid.ParseAndValidate(token, jwtbundle.FromJWTAuthorities(domainA, keys), audience)
}

func TestSignJWT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
		token, err := a.SignJWT(gatewayA, []string{"shop", "pay"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		svid, err := readJWT(token, a.JWTKeys(), "pay")
		if err != nil {
			t.Fatal(err)
		}
		if svid.ID != gatewayA || !slices.Equal(svid.Audience, []string{"shop", "pay"}) || time.Until(svid.Expiry).Round(time.Second) != MaxJWTLifetime {
			t.Errorf("%s for %v until %s", svid.ID, svid.Audience, svid.Expiry)
		}
		if _, err := readJWT(token, a.JWTKeys(), "bank"); err == nil {
			t.Error("taken by whom it is not for")
		}
		other := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
		if _, err := readJWT(token, other.JWTKeys(), "pay"); err == nil {
			t.Error("taken by the keys of another authority")
		}
		for name, test := range map[string]struct {
			id       spiffeid.ID
			audience []string
			ttl      time.Duration
		}{
			"another domain":     {gatewayB, []string{"pay"}, 0},
			"the domain":         {domainA.ID(), []string{"pay"}, 0},
			"no ID":              {spiffeid.ID{}, []string{"pay"}, 0},
			"a long ID":          {spiffeid.RequireFromPath(domainA, "/"+strings.Repeat("x", maxID)), []string{"pay"}, 0},
			"for nobody":         {gatewayA, nil, 0},
			"for an empty name":  {gatewayA, []string{"pay", ""}, 0},
			"for too many":       {gatewayA, slices.Repeat([]string{"pay"}, maxAudiences+1), 0},
			"for a long name":    {gatewayA, []string{strings.Repeat("x", maxAudience+1)}, 0},
			"for no name at all": {gatewayA, []string{"\xff"}, 0},
			"for too long":       {gatewayA, []string{"pay"}, MaxJWTLifetime + time.Second},
			"for less than none": {gatewayA, []string{"pay"}, -time.Second},
		} {
			if token, err := a.SignJWT(test.id, test.audience, test.ttl); err == nil {
				t.Errorf("%s: %s", name, token)
			} else if strings.Count(err.Error(), "trust: ") != 1 {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A fortnight of an authority that is restarted now and then, read by somebody who hears of new keys hours late: no living token is refused,
// and none is signed with a key that was not published long before.
func TestJWTKeysRollOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := AuthorityConfig{Dir: t.TempDir()}
		a := openAuthority(t, cfg)
		stop := run(t, a.Run)
		type version struct {
			at   time.Time
			keys map[string]crypto.PublicKey
		}
		told := []version{{time.Now().Add(-time.Hour), a.JWTKeys()}}
		seen := map[string]bool{}
		const late = 8 * time.Hour
		changed := a.Changed()
		for n := range 14 * 24 * 20 { // every three minutes
			if n%511 == 510 {
				stop()
				before := a.JWTKeys()
				a = openAuthority(t, cfg)
				if !maps.EqualFunc(before, a.JWTKeys(), sameKey) {
					t.Fatal("other keys after a restart")
				}
				stop, changed = run(t, a.Run), a.Changed()
			}
			token, err := a.SignJWT(gatewayA, []string{"pay"}, 0)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			select {
			case <-changed:
				changed = a.Changed()
			default:
				if !maps.EqualFunc(told[len(told)-1].keys, a.JWTKeys(), sameKey) {
					t.Fatal("keys changed and nobody was told")
				}
			}
			told = append(told, version{time.Now(), a.JWTKeys()})
			time.Sleep(3 * time.Minute)
			if len(a.JWTKeys()) > 3 {
				t.Fatalf("%d keys", len(a.JWTKeys()))
			}
			heard := told[0].keys
			for _, v := range told {
				if v.at.Before(time.Now().Add(-late)) {
					heard = v.keys
				}
			}
			for _, keys := range []map[string]crypto.PublicKey{a.JWTKeys(), heard} {
				if _, err := readJWT(token, keys, "pay"); err != nil {
					t.Fatalf("after %d tokens: %v", n, err)
				}
			}
			maps.Copy(seen, set(a.JWTKeys()))
		}
		stop()
		if n := len(seen); n < 7 || n > 9 {
			t.Errorf("%d keys in a fortnight", n)
		}
	})
}

func set(keys map[string]crypto.PublicKey) map[string]bool {
	out := map[string]bool{}
	for id := range keys {
		out[id] = true
	}
	return out
}

// A key that is not on disk is told to nobody: after a crash it would be gone, and what it signed with it.
func TestJWTKeysThatCantBeKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openAuthority(t, AuthorityConfig{Dir: t.TempDir()})
		before := a.JWTKeys()
		full := errors.New("disk full")
		a.jwt.write = func(string, []byte, placement) error { return full }
		time.Sleep(40 * time.Hour)
		token, err := a.SignJWT(gatewayA, []string{"pay"}, 0)
		if err != nil {
			t.Fatalf("the key that is there signs on: %v", err)
		}
		if _, err := readJWT(token, before, "pay"); err != nil || len(a.JWTKeys()) != 1 {
			t.Errorf("%d keys, %v", len(a.JWTKeys()), err)
		}
		if !errors.Is(a.maintain(time.Now()), full) {
			t.Error("nobody is told")
		}
		a.jwt.write = writeFile
		time.Sleep(time.Minute)
		if _, err := a.SignJWT(gatewayA, []string{"pay"}, 0); err != nil || len(a.JWTKeys()) != 2 {
			t.Errorf("%d keys, %v", len(a.JWTKeys()), err)
		}
	})
}

func TestJWTKeysDamaged(t *testing.T) {
	for name, damage := range map[string]func(jwtKeys) jwtKeys{
		"none active":    func(k jwtKeys) jwtKeys { k[0].State = jwtNext; return k },
		"none":           func(jwtKeys) jwtKeys { return jwtKeys{} },
		"two active":     func(k jwtKeys) jwtKeys { other, _ := newJWTKey(jwtActive, time.Now()); return append(k, other) },
		"the same twice": func(k jwtKeys) jwtKeys { other := k[0]; other.State = jwtPrevious; return append(k, other) },
		"unknown state":  func(k jwtKeys) jwtKeys { other, _ := newJWTKey("lost", time.Now()); return append(k, other) },
		"no private key": func(k jwtKeys) jwtKeys { k[0].Private = nil; return k },
		"another's": func(k jwtKeys) jwtKeys {
			other, _ := newJWTKey(jwtActive, time.Now())
			k[0].Private = other.Private
			return k
		},
		"another public": func(k jwtKeys) jwtKeys {
			other, _ := newJWTKey(jwtActive, time.Now())
			k[0].Public = other.Public
			return k
		},
		"no ID": func(k jwtKeys) jwtKeys { k[0].ID = ""; return k },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a := openAuthority(t, AuthorityConfig{Dir: dir})
			data, err := json.Marshal(damage(slices.Clone(*a.jwtKeys.Load())))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, jwtFile)
			if err = os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = OpenAuthority(AuthorityConfig{TrustDomain: domainA, Dir: dir})
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%v does not name the file", err)
			}
			if after, _ := os.ReadFile(path); string(after) != string(data) {
				t.Error("the file was changed")
			}
		})
	}
}
