// Package enduser verifies the tokens of end users: JSON Web Tokens (RFC 7519, RFC 8725) that come with requests, against the keys of the
// issuers that policies believe.
//
// Whatever is in doubt is refused: a token that two readers might read in two ways, an issuer whose keys can't be had or are too old.
// Signatures are go-jose's; what a token says, and how it may be spelled, is read here, and nothing that it says of its own keys counts.
package enduser

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

// Limits of tokens and of what is kept of them.
const (
	MaxToken       = 8 << 10 // bytes
	MaxCached      = 4096    // verified tokens of one issuer, and
	MaxCachedBytes = 4 << 20 // bytes of these together, as they come: what they say takes several times as much
	Leeway         = 30 * time.Second
)

// Config is what a Verifier needs. The zero value works, without files.
type Config struct {
	Folder    string            // where the files of keys are that policies name; empty: there are none
	Transport http.RoundTripper // fetches keys; nil: http.DefaultTransport, with the system's roots
	Now       func() time.Time  // nil: time.Now
	Log       *slog.Logger      // nil: nowhere
	// Refused is told of each token that was no good, for metrics and logs; nil: nobody is. It must not block.
	Refused func(issuer access.Issuer, err error)
}

// Verifier knows the issuers in use, their keys, and the tokens that were verified. It is safe for concurrent use.
type Verifier struct {
	cfg    Config
	client *http.Client
	// mu guards sources.
	mu      sync.Mutex
	sources []*source
}

// New makes a Verifier that knows no issuers.
func New(cfg Config) *Verifier {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Refused == nil {
		cfg.Refused = func(access.Issuer, error) {}
	}
	return &Verifier{cfg: cfg, client: newClient(cfg.Transport)}
}

// Group is the issuers that one set of policies asks for. It is immutable.
type Group struct {
	verifier *Verifier
	sources  []*source
}

// Use says which issuers there are from now on, in groups (as access.Set.Issuers has them), and returns those groups in the same order.
// Keys and verified tokens of issuers that stay are kept; no keys are fetched any more for those that don't.
func (v *Verifier) Use(groups ...[]access.Issuer) []*Group {
	v.mu.Lock()
	defer v.mu.Unlock()
	var used []*source
	out := make([]*Group, 0, len(groups))
	for _, issuers := range groups {
		g := &Group{verifier: v}
		for _, issuer := range issuers {
			s := find(used, issuer)
			if s == nil {
				if s = find(v.sources, issuer); s == nil {
					s = newSource(issuer, v.cfg.Folder, v.client, v.cfg.Log)
				}
				used = append(used, s)
			}
			g.sources = append(g.sources, s)
		}
		out = append(out, g)
	}
	v.sources = used
	return out
}

func find(sources []*source, issuer access.Issuer) *source {
	k := slices.IndexFunc(sources, func(s *source) bool { return s.is(issuer) })
	if k < 0 {
		return nil
	}
	return sources[k]
}

// Run keeps the keys fresh until ctx ends. Without it they are fetched when a token wants them.
func (v *Verifier) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var flights sync.WaitGroup
	defer flights.Wait()
	for {
		v.mu.Lock()
		sources := slices.Clone(v.sources)
		v.mu.Unlock()
		for _, s := range sources {
			if s.due(v.cfg.Now()) {
				flights.Go(func() { s.refresh(ctx, v.cfg.Now, false) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Tokens appends what the request's header says of its end users to tokens: one for each issuer of the group, in its order.
//
// For a token that was seen before, it allocates nothing. For one that is signed with a key not known yet, it waits for keys to be
// fetched, FetchTimeout at most.
func (g *Group) Tokens(ctx context.Context, header http.Header, tokens []access.Token) []access.Token {
	if g == nil || len(g.sources) == 0 {
		return tokens
	}
	now := g.verifier.cfg.Now()
	for _, s := range g.sources {
		tokens = append(tokens, g.token(ctx, s, header, now))
	}
	return tokens
}

func (g *Group) token(ctx context.Context, s *source, header http.Header, now time.Time) access.Token {
	text, err := s.text(header)
	if err != nil {
		g.verifier.cfg.Refused(s.issuer, err)
		return access.Token{State: access.TokenInvalid}
	}
	if text == "" {
		return access.Token{}
	}
	sum := hash(text)
	if user := s.cached(sum, now); user != nil {
		return access.Token{State: access.TokenValid, User: user}
	}
	// That of another issuer need not be read again: that one has.
	for _, o := range g.sources {
		if o.issuer.Issuer != s.issuer.Issuer && o.header == s.header && o.cached(sum, now) != nil {
			return access.Token{}
		}
	}
	user, err := s.verify(ctx, text, sum, g.verifier.cfg.Now)
	switch {
	case user != nil:
		return access.Token{State: access.TokenValid, User: user}
	case err == nil:
		return access.Token{} // another issuer's
	default:
		g.verifier.cfg.Refused(s.issuer, err)
		return access.Token{State: access.TokenInvalid}
	}
}

// text takes the token out of a header. Empty: there is none.
func (s *source) text(header http.Header) (string, error) {
	values := header[s.header]
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", refuse(Malformed, "the header %s is there %d times", s.header, len(values))
	}
	value := values[0]
	scheme, token, ok := strings.Cut(value, " ")
	switch {
	case ok && strings.EqualFold(scheme, "Bearer"):
		value = strings.Trim(token, " ")
	case s.header == authorization && oddBearer(value):
		return "", refuse(Malformed, "behind the scheme of the header %s there is something else than a space", s.header)
	case s.header == authorization && !strings.EqualFold(scheme, "Bearer"):
		return "", nil // another scheme
	}
	switch {
	case value == "" || s.header == authorization && !ok:
		return "", refuse(Malformed, "the header %s has no token", s.header)
	case len(value) > MaxToken:
		return "", refuse(Malformed, "the token has %d bytes, more than %d", len(value), MaxToken)
	}
	return value, nil
}

// oddBearer tells of a value that some take for a token and others don't: a tab behind the scheme, or a comma.
func oddBearer(value string) bool {
	const scheme = "Bearer"
	if len(value) <= len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return false
	}
	c := value[len(scheme)]
	letter := c|0x20 >= 'a' && c|0x20 <= 'z'
	return !letter && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~ ", rune(c)) // it is of another scheme's name (RFC 9110, section 5.6.2)
}

const authorization = "Authorization"

func headerOf(i access.Issuer) string {
	if i.Header == "" {
		return authorization
	}
	return textproto.CanonicalMIMEHeaderKey(i.Header)
}

// hash names a token that is kept, so that the token itself need not be.
func hash(token string) [sha256.Size]byte {
	var buf [MaxToken]byte // the conversion of a string would allocate
	return sha256.Sum256(buf[:copy(buf[:], token)])
}

// cached is who a token is of, if it was verified with keys that still hold, and has not ended.
func (s *source) cached(sum [sha256.Size]byte, now time.Time) *access.EndUser {
	keys := s.keys.Load()
	if keys == nil || !keys.hold(now) {
		return nil
	}
	keys.mu.RLock()
	defer keys.mu.RUnlock()
	v, ok := keys.verified[sum]
	if !ok || !now.Before(v.end) {
		return nil
	}
	return v.user
}

// keep remembers a token of so many bytes until it ends.
func (k *keySet) keep(sum [sha256.Size]byte, user *access.EndUser, size int, end, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.verified) > 0 && (len(k.verified) >= MaxCached || k.bytes+size > MaxCachedBytes) {
		looked := 0
		for old, v := range k.verified { // in no order: none can be aimed at
			if looked++; !now.Before(v.end) || looked == evictions || looked == len(k.verified) {
				delete(k.verified, old)
				k.bytes -= v.size
				break
			}
		}
	}
	if had, ok := k.verified[sum]; ok {
		k.bytes -= had.size
	}
	k.verified[sum] = verified{user, size, end}
	k.bytes += size
}

// evictions is how many kept tokens are looked at for one that has ended, before one goes that has not.
const evictions = 8
