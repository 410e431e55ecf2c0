package workload

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/trust"
)

// How much is signed, and kept.
const (
	maxCached      = 1024 // tokens, by identity and audience
	signsPerSecond = 20   // of one identity: a token that is in use costs one each half of its life
	signsAtOnce    = 50
	maxLimits      = 1024            // identities of which it is remembered how much was signed
	shortestUsable = 5 * time.Second // what is left of a token that is given out because no new one is to be had
)

// tokens are JWT-SVIDs, made when they are asked for and kept until half of their life. Safe for concurrent use.
type tokens struct {
	source  Source
	bundles *trust.Bundles
	now     func() time.Time

	mu     sync.Mutex
	cached map[string]*cachedToken       // guarded by mu
	limits map[spiffeid.ID]*rate.Limiter // guarded by mu; of one each, so that nobody uses up what another needs
}

// cachedToken is one that is made by one caller at a time; the others wait for it.
type cachedToken struct {
	turn chan struct{} // holds one while nobody is at it

	token    string // of who has the turn, like the rest
	renewAt  time.Time
	notAfter time.Time
}

func newTokens(source Source, bundles *trust.Bundles, now func() time.Time) *tokens {
	return &tokens{
		source: source, bundles: bundles, now: now,
		cached: make(map[string]*cachedToken), limits: make(map[spiffeid.ID]*rate.Limiter),
	}
}

// get returns a JWT-SVID of id for an audience, in order and without doubles. It is one that verifies now.
func (t *tokens) get(ctx context.Context, id spiffeid.ID, audience []string) (string, error) {
	c := t.entry(tokenKey(id, audience))
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return "", status.FromContextError(ctx.Err()).Err()
	}
	now := t.now()
	usable := c.token != "" && c.notAfter.Sub(now) > shortestUsable
	if usable {
		_, err := VerifyJWT(t.bundles, c.token, audience[0], now) // its key, its ID, or all of its domain may be revoked
		usable = err == nil
	}
	if usable && now.Before(c.renewAt) {
		return c.token, nil
	}
	token, v, err := t.sign(ctx, id, audience)
	switch {
	case err == nil:
		c.token, c.notAfter = token, v.NotAfter
		c.renewAt = now.Add(v.NotAfter.Sub(now) / 2)
		return token, nil
	case usable && status.Code(err) != codes.PermissionDenied: // control is away: what was made lasts as long as it says
		return c.token, nil
	}
	c.token = ""
	return "", err
}

func (t *tokens) sign(ctx context.Context, id spiffeid.ID, audience []string) (string, *Token, error) {
	if !t.limitOf(id).AllowN(t.now(), 1) {
		return "", nil, status.Errorf(codes.ResourceExhausted, "more than %d JWT-SVIDs a second: ask again for those that you have", signsPerSecond)
	}
	token, err := t.source.SignJWT(ctx, id, audience)
	if err != nil {
		return "", nil, err
	}
	v, err := VerifyJWT(t.bundles, token, audience[0], t.now())
	switch {
	case err != nil:
		return "", nil, status.Errorf(codes.Unavailable, "the JWT-SVID that was made is not one that anybody takes: %v", err)
	case v.ID != id:
		return "", nil, status.Errorf(codes.Unavailable, "the JWT-SVID that was made is of %s, not of %s", v.ID, id)
	}
	return token, v, nil
}

// tokenKey tells tokens apart. An audience may hold any character: it is its length that says where it ends.
func tokenKey(id spiffeid.ID, audience []string) string {
	parts := []string{id.String()}
	for _, a := range audience {
		parts = append(parts, strconv.Itoa(len(a))+":"+a)
	}
	return strings.Join(parts, " ")
}

// limitOf returns how much may be signed of an identity.
func (t *tokens) limitOf(id spiffeid.ID) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.limits[id]
	if l == nil {
		if len(t.limits) >= maxLimits {
			now := t.now()
			maps.DeleteFunc(t.limits, func(_ spiffeid.ID, l *rate.Limiter) bool { return l.TokensAt(now) >= signsAtOnce })
		}
		l = rate.NewLimiter(signsPerSecond, signsAtOnce)
		t.limits[id] = l
	}
	return l
}

// entry returns the place of a token, and makes room for it.
func (t *tokens) entry(key string) *cachedToken {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.cached[key]; c != nil {
		return c
	}
	if len(t.cached) >= maxCached {
		t.forget()
	}
	c := &cachedToken{turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	t.cached[key] = c
	return c
}

// forget drops what has ended, and if that is little, others, no matter which: a token costs one call. The caller holds t.mu.
func (t *tokens) forget() {
	now := t.now()
	drop := func(all bool) {
		for key, c := range t.cached {
			if len(t.cached) <= maxCached*3/4 {
				return
			}
			select {
			case <-c.turn:
				if all || !now.Before(c.notAfter) {
					delete(t.cached, key)
				}
				c.turn <- struct{}{}
			default: // somebody is at it
			}
		}
	}
	drop(false)
	drop(true)
}
