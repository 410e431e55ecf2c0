package control

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"slices"
	"sync"
	"time"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
)

// Limits of join tokens.
const (
	tokenLifetime  = 15 * time.Minute
	tokenBytes     = 32     // of randomness
	maxTokens      = 10_000 // outstanding at a time
	maxTokenLength = 256    // of what a caller shows
)

// Why a token is refused. Callers are told no more than this.
var (
	errBadToken      = errors.New("the join token is not known: it is good once, and for 15 minutes")
	errTooManyTokens = errors.New("too many join tokens are outstanding")
)

// grant is what a token is good for: one program under one name.
type grant struct {
	program  string // as in the keys of the config stream
	name     string // namespace/name of a workload, id of a gateway, name of a node proxy
	expires  time.Time
	attested bool   // the platform vouches for it, and not a join token
	account  string // of a workload, if attested: the service account
}

// issued is a token that was given out. Only its hash is kept: what is in memory can't be used to join.
type issued struct {
	hash  [sha256.Size]byte
	grant grant
}

// tokens are the join tokens that are outstanding. They live in memory: a restart voids them. Safe for concurrent use.
type tokens struct {
	now func() time.Time

	mu          sync.Mutex
	outstanding []issued // guarded by mu
}

// issue makes a token for one program.
func (t *tokens) issue(program, name string) (token string, expires time.Time, err error) {
	raw := make([]byte, tokenBytes)
	if _, err := rand.Read(raw); err != nil {
		return "", time.Time{}, err
	}
	token = identityv1.JoinTokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if len(t.outstanding) >= maxTokens {
		return "", time.Time{}, errTooManyTokens
	}
	g := grant{program: program, name: name, expires: t.now().Add(tokenLifetime)}
	t.outstanding = append(t.outstanding, issued{hash: sha256.Sum256([]byte(token)), grant: g})
	return token, g.expires, nil
}

// redeem takes a token back and returns what it was good for. undo gives it out again, for when nothing was issued for it.
func (t *tokens) redeem(token string) (g grant, undo func(), err error) {
	if len(token) > maxTokenLength {
		return grant{}, nil, errBadToken
	}
	hash := sha256.Sum256([]byte(token))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	found := -1
	for i := range t.outstanding { // all of them, whatever is found: how long it takes tells nothing
		if subtle.ConstantTimeCompare(t.outstanding[i].hash[:], hash[:]) == 1 {
			found = i
		}
	}
	if found < 0 {
		return grant{}, nil, errBadToken
	}
	taken := t.outstanding[found]
	t.outstanding = slices.Delete(t.outstanding, found, found+1)
	return taken.grant, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.outstanding = append(t.outstanding, taken)
	}, nil
}

// expire drops what is over. The caller holds t.mu.
func (t *tokens) expire() {
	now := t.now()
	t.outstanding = slices.DeleteFunc(t.outstanding, func(i issued) bool { return !now.Before(i.grant.expires) })
}
