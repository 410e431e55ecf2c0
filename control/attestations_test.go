package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/live"
)

// doorman counts what it is asked. It knows nobody but "good".
type doorman struct{ asked int }

func (d *doorman) Attest(_ context.Context, token string) (Attested, error) {
	d.asked++
	if token != "good" {
		return Attested{}, ErrNotAttested
	}
	return Attested{Program: "gateway", Name: "gateway-0"}, nil
}

func (d *doorman) Screen(token string) error {
	if token == "junk" {
		return fmt.Errorf("%w: junk", ErrNotAttested)
	}
	return nil
}

// TestJunkJoins: whoever sends tokens that are no good keeps only its own address out, and the platform is not asked of what shows it itself.
func TestJunkJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := new(doorman)
		s := &identityServer{attestor: d, attestations: newAttestations(), tokens: &tokens{now: time.Now}, log: slog.New(slog.DiscardHandler)}
		prove := func(from, token string) codes.Code {
			ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))})
			_, _, err := s.prove(ctx, token)
			return status.Code(err)
		}
		for range 1000 {
			if code := prove("10.1.0.9:1", "junk"); code != codes.Unauthenticated {
				t.Fatalf("junk: %v", code)
			}
		}
		if d.asked != 0 {
			t.Errorf("the platform was asked %d times of junk", d.asked)
		}
		if code := prove("10.1.0.9:1", "good"); code != codes.OK {
			t.Errorf("from where junk came from: %v", code)
		}
		d.asked = 0
		shed := 0
		for i := range 1000 {
			if prove(fmt.Sprintf("10.1.0.9:%d", i+1), "forged") == codes.ResourceExhausted {
				shed++
			}
		}
		if d.asked >= attestationsAtOnceOfAddress || shed != 1000-d.asked {
			t.Errorf("one address had the platform asked %d times, and was shed %d times", d.asked, shed)
		}
		if code := prove("10.1.0.8:1", "good"); code != codes.OK {
			t.Errorf("from another address than the flood: %v", code)
		}
		time.Sleep(time.Second)
		if code := prove("10.1.0.9:1", "good"); code != codes.OK {
			t.Errorf("a second later: %v", code)
		}
		// Many addresses together: what the platform is asked has an end too.
		d.asked = 0
		for i := range 250 {
			prove(fmt.Sprintf("10.2.0.%d:1", i), "forged")
		}
		if d.asked > attestationsAtOnce {
			t.Errorf("250 addresses had the platform asked %d times", d.asked)
		}
	})
}

// TestAttestationAddresses: what is remembered of addresses is bounded, and is not forgotten while it counts as long as there is room.
func TestAttestationAddresses(t *testing.T) {
	a, now := newAttestations(), time.Now()
	nth := func(i int) netip.Prefix {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(i))
		return netip.PrefixFrom(netip.AddrFrom4(b), 32)
	}
	busy := nth(1)
	for range attestationsAtOnceOfAddress {
		a.limitOf(busy, now).AllowN(now, 1)
	}
	for i := range maxAttestationAddresses { // who asks nothing leaves nothing
		a.limitOf(nth(i), now)
	}
	a.limitOf(nth(maxAttestationAddresses), now)
	if n := len(a.ofAddress); n > 2 {
		t.Errorf("%d addresses are remembered that asked for nothing", n)
	}
	if a.limitOf(busy, now).AllowN(now, 1) {
		t.Error("who had its share was forgotten for some who asked for nothing")
	}
	for i := range 3 * maxAttestationAddresses {
		a.limitOf(nth(i), now).AllowN(now, 1)
		if len(a.ofAddress) > maxAttestationAddresses {
			t.Fatalf("%d addresses are remembered", len(a.ofAddress))
		}
	}
}

// stated is a registry of what it is told.
type stated struct{ *live.Value[*Objects] }

func (s stated) Objects() *live.Value[*Objects] { return s.Value }

func (s stated) PutStatus(context.Context, *Status) error { return nil }

// TestPredecessor: a workload gets the identity that the platform vouches for, and not that of one that had its name before.
func TestPredecessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		objects := func(account string) *Objects {
			return &Objects{Workloads: []Workload{{Meta: Meta{Namespace: "shop", Name: "web-0"}, ServiceAccount: account}}}
		}
		r := stated{live.NewValue(objects("admin"))}
		s := &identityServer{directory: &directory{domain: spiffeid.RequireTrustDomainFromString("eu.example"), registry: r}, log: slog.New(slog.DiscardHandler)}
		g := grant{program: "sidecar", name: "shop/web-0", account: "web", attested: true}
		if id, err := s.identify(t.Context(), g); !errors.Is(err, errNoWorkload) {
			t.Errorf("while the registry knows its predecessor: %q, %v", id, err)
		}
		go func() {
			time.Sleep(newcomerPatience / 2)
			r.Store(objects("web"))
		}()
		if id, err := s.identify(t.Context(), g); err != nil || id.Path() != "/ns/shop/sa/web" {
			t.Errorf("once the registry has heard of it: %q, %v", id, err)
		}
	})
}
