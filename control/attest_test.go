package control_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/trust"
)

// platform attests by a list.
type platform map[string]struct {
	program, name, account string
	err                    error
}

func (p platform) Attest(_ context.Context, token string) (control.Attested, error) {
	a, ok := p[token]
	if !ok {
		return control.Attested{}, fmt.Errorf("%w: who is that", control.ErrNotAttested)
	}
	return control.Attested{Program: a.program, Name: a.name, ServiceAccount: a.account}, a.err
}

func (p platform) Screen(token string) error {
	if token == "junk" {
		return fmt.Errorf("%w: junk", control.ErrNotAttested)
	}
	return nil
}

// TestAttestedJoin: where a platform vouches, its token is as good as a join token, for the program that it says and for no other.
func TestAttestedJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.attestor = platform{
			"pod checkout-0": {"sidecar", "shop/checkout-0", "checkout", nil},
			"pod unknown":    {"sidecar", "shop/unknown", "unknown", nil},
			"pod reborn":     {"sidecar", "shop/checkout-0", "another", nil},
			"pod late":       {"sidecar", "shop/late-0", "late", nil},
			"pod gateway-0":  {"gateway", "gateway-0", "", nil},
			"api down":       {"", "", "", errors.New("connection refused")},
		}
		eu := m.start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		_, csr, err := trust.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		join := func(token string) (string, error) {
			c, err := eu.call(t, nil).Join(t.Context(), &identityv1.JoinRequest{Token: token, Csr: csr})
			return c.GetSpiffeId(), err
		}
		for range 2 { // it is good for as long as the platform says so
			if id, err := join("pod checkout-0"); err != nil || id != "spiffe://eu.example/ns/shop/sa/checkout" {
				t.Errorf("a workload: %q, %v", id, err)
			}
		}
		if id, err := join("pod gateway-0"); err != nil || id != "spiffe://eu.example/isthmus/gateway/gateway-0" {
			t.Errorf("a gateway: %q, %v", id, err)
		}
		if id, err := join(eu.token(t, `{"gateway":"gateway-1"}`)); err != nil || id != "spiffe://eu.example/isthmus/gateway/gateway-1" {
			t.Errorf("a join token: %q, %v", id, err)
		}
		for token, want := range map[string]codes.Code{
			"pod unknown": codes.Unavailable, "pod reborn": codes.Unavailable, "somebody": codes.Unauthenticated, "junk": codes.Unauthenticated, "api down": codes.Unavailable, "": codes.Unauthenticated,
			strings.Repeat("x", 9<<10): codes.Unauthenticated, "isthmus-join-made-up": codes.Unauthenticated,
		} {
			_, err := join(token)
			wantCode(t, fmt.Sprintf("%.20q", token), err, want)
		}

		// A workload that the registry is about to hear of is waited for.
		id := make(chan string, 1)
		go func() {
			got, err := join("pod late")
			if err != nil {
				t.Errorf("a workload that comes in a moment: %v", err)
			}
			id <- got
		}()
		time.Sleep(time.Second)
		eu.registry.declare(t, checkoutManifest+"---\n"+strings.ReplaceAll(checkoutManifest, "checkout", "late"))
		if got := <-id; got != "spiffe://eu.example/ns/shop/sa/late" {
			t.Errorf("a workload that comes in a moment: %q", got)
		}

		// Who is nobody can't make control ask without end.
		shed := false
		for range 200 {
			_, err := join("somebody")
			shed = shed || status.Code(err) == codes.ResourceExhausted
		}
		if !shed {
			t.Error("200 questions at once were passed on to the platform")
		}
		time.Sleep(time.Minute)
		if _, err := join("pod checkout-0"); err != nil {
			t.Errorf("after the flood: %v", err)
		}
	})
}
