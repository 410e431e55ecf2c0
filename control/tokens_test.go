package control

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestTokenIsGoodOnce(t *testing.T) {
	ts := &tokens{now: time.Now}
	token, _, err := ts.issue("gateway", "gateway-0")
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ts.issue("node", "node-0")
	if err != nil || other == token {
		t.Fatalf("the same token twice, or %v", err)
	}
	// Many at a time: one gets it.
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		won  []grant
		lost int
	)
	for range 50 {
		wg.Go(func() {
			g, _, refusal := ts.redeem(token)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case refusal == nil:
				won = append(won, g)
			case errors.Is(refusal, errBadToken):
				lost++
			default:
				t.Errorf("unexpected: %v", refusal)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 || lost != 49 || won[0].program != "gateway" || won[0].name != "gateway-0" {
		t.Fatalf("%d got it (%+v), %d did not", len(won), won, lost)
	}
	for _, bad := range []string{"", token, token + "x", strings.ToUpper(other), other[:len(other)-1], strings.Repeat("x", 10_000)} {
		if _, _, err = ts.redeem(bad); !errors.Is(err, errBadToken) {
			t.Errorf("%.40q was taken: %v", bad, err)
		}
	}
	g, undo, err := ts.redeem(other)
	if err != nil || g.program != "node" {
		t.Fatalf("the other token: %+v, %v", g, err)
	}
	undo()
	if _, _, err := ts.redeem(other); err != nil {
		t.Fatalf("a token that was given back: %v", err)
	}
}

func TestTokenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts := &tokens{now: time.Now}
		early, expires, err := ts.issue("gateway", "gateway-0")
		if err != nil || time.Until(expires) != 15*time.Minute {
			t.Fatalf("expires in %v, %v", time.Until(expires), err)
		}
		time.Sleep(10 * time.Minute)
		late, _, err := ts.issue("gateway", "gateway-1")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if _, _, err := ts.redeem(early); !errors.Is(err, errBadToken) {
			t.Errorf("a token that ended was taken: %v", err)
		}
		if _, _, err := ts.redeem(late); err != nil {
			t.Errorf("a token that has not ended: %v", err)
		}
	})
}

func TestTokensAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	ts := &tokens{now: func() time.Time { return now }}
	for range maxTokens {
		ts.outstanding = append(ts.outstanding, issued{grant: grant{expires: now.Add(time.Minute)}})
	}
	if _, _, err := ts.issue("gateway", "gateway-0"); !errors.Is(err, errTooManyTokens) {
		t.Fatalf("one more than the limit: %v", err)
	}
	now = now.Add(time.Minute)
	if _, _, err := ts.issue("gateway", "gateway-0"); err != nil {
		t.Fatalf("after the others ended: %v", err)
	}
}
