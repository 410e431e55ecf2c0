package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/agent"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

func TestJoinRenewAndConfigure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		p := c.run()
		checks := ready.New()
		p.Checks(checks)
		p.ready(t, time.Minute)
		synctest.Wait()
		if missing := checks.Missing(); len(missing) > 0 {
			t.Errorf("missing %v", missing)
		}
		svid, err := p.Identity.SVID()
		if err != nil || svid.ID.String() != "spiffe://eu.example/ns/shop/sa/checkout" {
			t.Fatalf("identity %v, %v", svid, err)
		}
		if s := p.Stream.Snapshots().Load().Self(); s.Cluster.String() != "eu" {
			t.Errorf("self %+v", s)
		}

		time.Sleep(12 * lifetime)
		synctest.Wait()
		if joins, renews := c.counts(); joins != 1 || renews < 20 || renews > 28 {
			t.Errorf("%d joins and %d renewals in 12 lifetimes, want 1 and about 24", joins, renews)
		}
		for range 60 { // an old identity's connection may just have ended
			if p.Stream.Connected() {
				break
			}
			time.Sleep(time.Second)
		}
		if !p.Stream.Connected() {
			t.Errorf("no stream: %v", p.Stream.Problems())
		}
		if missing := checks.Missing(); len(missing) > 0 {
			t.Errorf("missing %v after 12 lifetimes", missing)
		}
		if strings.Contains(c.logged(), "sesame") {
			t.Error("the token was logged")
		}
		told := map[string]time.Duration{}
		for _, e := range p.Expiries() {
			told[e.What+" "+e.TrustDomain] = time.Until(e.At)
		}
		if left := told["svid eu.example"]; left <= 0 || left > lifetime || told["bundle eu.example"] <= left {
			t.Errorf("expiries %v", told)
		}
	})
}

func TestARestartNeedsNeitherControlNorToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		c.tell(configstream.EncodeBundle(other, configstream.BundleData{Authorities: c.authority.Roots()}))
		p := c.run()
		p.ready(t, time.Minute)
		p.stop()
		c.stop()
		for _, name := range []string{"token", "bundle.pem"} {
			if err := os.Remove(filepath.Join(c.dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		p = c.run()
		p.ready(t, 0)
		for _, td := range []spiffeid.TrustDomain{domain, other} {
			if b, _ := p.Bundles.Get(td); len(b.Authorities) == 0 {
				t.Errorf("no roots of %s", td)
			}
		}
		time.Sleep(lifetime / 4)
		c.start()
		time.Sleep(time.Minute)
		if !p.Stream.Connected() {
			t.Errorf("no stream: %v", p.Stream.Problems())
		}
		if joins, _ := c.counts(); joins != 1 {
			t.Errorf("%d joins, want 1", joins)
		}
	})
}

func TestWithoutATokenItSaysWhatToDoAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		p := c.run()
		checks := ready.New()
		p.Checks(checks)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		err := p.WaitReady(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error %v, want DeadlineExceeded", err)
		}
		for _, want := range []string{"identity", "configuration", "no join token", filepath.Join(c.dir, "token")} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %v does not say %q", err, want)
			}
		}
		if missing := checks.Missing(); len(missing) != 2 || !strings.Contains(missing[1], "no join token") {
			t.Errorf("missing %v", missing)
		}
		c.token("used-up", false)
		time.Sleep(5 * time.Minute)
		if missing := checks.Missing(); len(missing) != 2 || !strings.Contains(missing[1], "refused the join token") {
			t.Errorf("missing %v", missing)
		}
		c.token("sesame-2", true)
		p.ready(t, 2*time.Minute)
		for _, want := range []string{"no join token", "refused the join token"} {
			if n := strings.Count(c.logged(), want); n < 1 || n > 3 {
				t.Errorf("%q was logged %d times", want, n)
			}
		}
	})
}

func TestAnExpiredSVIDIsReplacedByANewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		p := c.run()
		p.ready(t, time.Minute)
		checks := ready.New()
		p.Checks(checks)
		c.stop()
		time.Sleep(2 * lifetime) // away for longer than an SVID lasts
		synctest.Wait()
		if missing := checks.Missing(); len(missing) != 1 || !strings.HasPrefix(missing[0], agent.CheckIdentity) {
			t.Errorf("missing %v, want the identity", missing)
		}
		c.start()
		time.Sleep(5 * time.Minute)
		if missing := checks.Missing(); len(missing) != 1 || !strings.Contains(missing[0], "refused the join token") {
			t.Errorf("missing %v, want that the token is used up", missing)
		}
		restarted := false
		for range 2 { // running, and after a restart
			c.token("sesame-2", true)
			p.ready(t, 2*time.Minute)
			synctest.Wait()
			if restarted {
				break
			}
			p.stop()
			time.Sleep(2 * lifetime)
			p, restarted = c.run(), true
			if _, err := p.Identity.SVID(); !errors.Is(err, trust.ErrNoIdentity) {
				t.Errorf("an expired SVID was taken from disk: %v", err)
			}
		}
		time.Sleep(time.Minute)
		if !p.Stream.Connected() {
			t.Errorf("no stream: %v", p.Stream.Problems())
		}
	})
}

func TestOnlyControlIsBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.stop()
		var err error
		if c.as, err = trust.WorkloadID(domain, "shop", "mallory"); err != nil { // of the right domain, but not control
			t.Fatal(err)
		}
		c.start()
		c.token("sesame-1", true)
		p := c.run()
		time.Sleep(10 * time.Minute)
		if joins, _ := c.counts(); joins != 0 {
			t.Errorf("the token was shown to another, %d times", joins)
		}
		if _, err := p.Identity.SVID(); !errors.Is(err, trust.ErrNoIdentity) {
			t.Errorf("error %v, want ErrNoIdentity", err)
		}
	})
}

func TestWithoutRootsTheTokenIsNotShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		file := filepath.Join(c.dir, "bundle.pem")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		c.write("bundle.pem", "no PEM")
		c.token("sesame-1", true)
		p := c.run()
		time.Sleep(5 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), "trust-bundle.pem") {
			t.Errorf("error %v, want that the roots are missing", err)
		}
		if joins, _ := c.counts(); joins != 0 {
			t.Errorf("%d joins", joins)
		}
		if n := strings.Count(c.logged(), "trust bundle file can't be used"); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
		c.write("bundle.pem", string(b))
		p.ready(t, 2*time.Minute)
	})
}

func TestRootsAreControlsWordOnceItSpoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		p := c.run()
		p.ready(t, time.Minute)
		synctest.Wait()
		old := c.authority.Roots()
		own := func() string {
			synctest.Wait()
			b, _ := p.Bundles.Get(domain)
			var out []string
			for _, r := range b.Authorities {
				if r.Equal(old[0]) {
					out = append(out, "old")
				} else {
					out = append(out, "new")
				}
			}
			slices.Sort(out)
			return strings.Join(out, " ")
		}
		if got := own(); got != "old" {
			t.Fatalf("roots %q", got)
		}

		// Control loses its state: it has new roots, which it can't tell of, and the old SVID is worth nothing to it.
		c.stop()
		c.reset()
		c.tell()
		c.start()
		time.Sleep(10 * time.Second)
		if got := own(); got != "new old" {
			t.Errorf("roots %q, want those of the file beside the old ones", got)
		}
		c.token("sesame-2", true)
		time.Sleep(lifetime) // until it was time to renew
		if got := own(); got != "new" {
			t.Errorf("roots %q, want the new ones alone", got)
		}
		c.stop()
		time.Sleep(time.Minute)
		if got := own(); got != "new" {
			t.Errorf("roots %q while control is away, want the new ones alone", got)
		}
	})
}

func TestBundlesFollowTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		p := c.run()
		p.ready(t, time.Minute)
		synctest.Wait()
		if _, ok := p.Bundles.Get(other); ok {
			t.Error("a bundle that nobody told of")
		}
		revoked := map[[32]byte]struct{}{{1}: {}}
		c.tell(configstream.EncodeBundle(other, configstream.BundleData{Authorities: c.authority.Roots(), Revoked: revoked}))
		synctest.Wait()
		if b, _ := p.Bundles.Get(other); len(b.Authorities) != 1 || len(b.Revoked) != 1 {
			t.Errorf("bundle %+v", b)
		}
		c.tell()
		synctest.Wait()
		if _, ok := p.Bundles.Get(other); ok {
			t.Error("a peer that is gone is trusted still")
		}
	})
}

// Control hears that bundles are in force once they are: what it waits for with a new root.
func TestBundlesInForceAreAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		p := c.run()
		p.ready(t, time.Minute)
		for range 3 {
			c.tell(configstream.EncodeBundle(other, configstream.BundleData{Authorities: c.authority.Roots()}))
			synctest.Wait()
			told := c.stream.Sessions()[0].Applied()
			c.tell()
			synctest.Wait()
			if _, trusted := p.Bundles.Get(other); trusted || c.stream.Sessions()[0].Applied() != told+1 {
				t.Errorf("revision %d in force, want %d", c.stream.Sessions()[0].Applied(), told+1)
			}
		}
	})
}

func TestARevokedControlLosesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		p := c.run()
		p.ready(t, time.Minute)
		synctest.Wait()
		svid, err := c.identity.SVID()
		if err != nil {
			t.Fatal(err)
		}
		c.stream.Set(configstream.NewWorld([]*configv1.Resource{configstream.EncodeBundle(domain, configstream.BundleData{
			Authorities: c.authority.Roots(),
			Revoked:     map[[32]byte]struct{}{trust.Fingerprint(svid.Certificates[0]): {}},
		})}))
		time.Sleep(time.Minute)
		if p.Stream.Connected() {
			t.Error("still connected")
		}
		c.stop()
		c.tell()
		c.start() // with another key
		time.Sleep(time.Minute)
		if !p.Stream.Connected() {
			t.Errorf("no stream: %v", p.Stream.Problems())
		}
	})
}

func TestSubscribeThroughTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		name, err := topology.ParseServiceName("checkout.shop")
		if err != nil {
			t.Fatal(err)
		}
		c.tell(configstream.EncodeService(&topology.Service{Name: name}))
		p := c.run()
		if err := p.Stream.Subscribe(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if p.Stream.Snapshots().Load().Service(name) == nil {
			t.Error("the service is not there")
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	dir := t.TempDir()
	good := agent.Config{Control: "127.0.0.1:1", TrustDomain: domain, StateDir: dir, Hello: hello}
	if _, err := agent.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*agent.Config){
		"control": func(c *agent.Config) { c.Control = "" },
		"domain":  func(c *agent.Config) { c.TrustDomain = spiffeid.TrustDomain{} },
		"state":   func(c *agent.Config) { c.StateDir = "" },
		"hello":   func(c *agent.Config) { c.Hello = nil },
		"dir":     func(c *agent.Config) { c.StateDir = os.DevNull },
	} {
		bad := good
		change(&bad)
		if _, err := agent.New(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
