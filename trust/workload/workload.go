// Package workload serves the SPIFFE Workload API on a Unix socket: X.509-SVIDs with their keys, JWT-SVIDs, the trust bundles of all domains
// that are trusted here, and every change of them, to processes of the same machine or Pod. It verifies JWT-SVIDs ([VerifyJWT]).
//
// A caller shows nothing; the kernel says who it is ([Caller]), and a [Source] says which identities that is good for. isthmus-sidecar
// serves its own workload's identity, isthmus-control those of the workloads of its machine.
//
// Every stream is computed from the present: it waits for a change, looks at what is true then, and sends it if it is another than what it
// sent last. Who is slow misses what came and went, and nothing queues; who takes nothing at all loses the stream.
//
// Concurrency: Server is safe for concurrent use. Serve waits for all that it started.
//
// Standards: "SPIFFE Workload Endpoint" and "SPIFFE Workload API" (github.com/spiffe/spiffe/standards).
package workload

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	workloadv1 "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/time/rate"

	"github.com/isthmus-mesh/isthmus/trust"
)

// ErrNobody says that a caller has no identity here, or none any more.
var ErrNobody = errors.New("workload: this caller has no identity here")

// ErrNotYet says that a caller has an identity, and that there is no SVID for it now: it was not issued yet, say.
var ErrNotYet = errors.New("workload: there is no SVID yet")

// Source knows who has which identities. Implementations are safe for concurrent use.
type Source interface {
	// Identities returns what a caller is entitled to now, the default first, and a channel that is closed when the answer may be another.
	// Errors wrap ErrNobody, which refuses the caller and ends its streams, or ErrNotYet, for which the caller waits.
	Identities(c Caller) (ids []Identity, changed <-chan struct{}, err error)
	// SignJWT makes a JWT-SVID of id, one that Identities returned.
	SignJWT(ctx context.Context, id spiffeid.ID, audience []string) (token string, err error)
}

// Identity is one that a caller has.
type Identity struct {
	SVID *x509svid.SVID // with its key; not to be modified
	Hint string         // tells several apart, in the operator's words; may be empty
}

// Config is what a Server is made from.
type Config struct {
	Source  Source         // required
	Bundles *trust.Bundles // required; of the own domain too

	Now func() time.Time // default: time.Now
	Log *slog.Logger     // default: none

	// Patience is how long a caller waits for its first SVID before it is told to come again; default 5 s.
	Patience time.Duration
	// SendTimeout is how long a caller may take no message; default 10 s.
	SendTimeout time.Duration
}

// How many refusals are logged.
const (
	refusalsPerSecond = 1
	refusalsAtOnce    = 20
)

// Server answers the Workload API.
type Server struct {
	workloadv1.UnimplementedSpiffeWorkloadAPIServer

	cfg      Config
	doors    doors
	tokens   *tokens
	refusals *rate.Limiter  // that are logged: whoever is refused may come again without a pause
	stop     chan struct{}  // closed when Serve ends
	senders  sync.WaitGroup // of messages that were given up
}

// NewServer returns a Server. Serve may be called once.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Source == nil || cfg.Bundles == nil {
		return nil, errors.New("workload: Source and Bundles are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 5 * time.Second
	}
	if cfg.SendTimeout <= 0 {
		cfg.SendTimeout = 10 * time.Second
	}
	return &Server{
		cfg: cfg, tokens: newTokens(cfg.Source, cfg.Bundles, cfg.Now), refusals: rate.NewLimiter(refusalsPerSecond, refusalsAtOnce),
		stop: make(chan struct{}),
	}, nil
}
