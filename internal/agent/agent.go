// Package agent is what a gateway and a sidecar share: who they are, whom they trust, and what control tells them.
//
// An Agent joins the trust domain with a single-use token, keeps its SVID renewed, holds the config stream to control
// open, and feeds the bundles that come on it to everybody who verifies a peer. All three are kept in a directory, so that
// a program that is started while control is away works from there until its SVID ends.
//
// cmd/isthmus-gateway and cmd/isthmus-sidecar make one each and hand its parts to the program.
//
// Concurrency: Run has one child for each thing that goes on by itself (renewal, stream, bundles, guard, readiness), and
// waits for all of them. The exported fields are set by New and safe for concurrent use, as are all methods.
package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/upstream"
)

// stateFile is where the config stream's last good state is, in StateDir, beside the SVID.
const stateFile = "config.state"

// Config is what an Agent is made from. All but JoinTokenFile, TrustBundleFile, Dial, Log and Now are required.
type Config struct {
	Control     string // host:port of the control plane
	TrustDomain spiffeid.TrustDomain
	// StateDir keeps the SVID with its key and the configuration; made (0700) if need be. One program each.
	StateDir string
	// JoinTokenFile holds a single-use join token, or one by which the platform knows the program. It is read at every attempt to
	// join, and needed only then.
	JoinTokenFile string
	// TrustBundleFile holds the trust domain's roots (PEM), to know control by. Needed until control has told of them once.
	TrustBundleFile string
	// WorkloadAPI is the address of a SPIFFE Workload API (unix:///…) that says who the program is, and by which roots control is known: then the
	// two files above are of no use. Empty: control says so.
	WorkloadAPI string
	Hello       *configv1.Hello

	// Dial opens a TCP connection to Control; default: net.Dialer.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	Log  *slog.Logger     // default: none
	Now  func() time.Time // default: time.Now
}

// Agent is one program's identity, trust and configuration.
type Agent struct {
	Identity *trust.Identity
	Bundles  *trust.Bundles
	Guard    *trust.Guard
	Stream   *configstream.Client

	cfg     Config
	problem live.Value[error] // why the last attempt to get an SVID failed; nil: it did not
	roots   rootsFile         // owned by feed once Run runs
	signing signing
	spent   [sha256.Size]byte // of the join token that was accepted or refused last; owned by the renewal
	early   chan struct{}     // holds one: the SVID is of no use any more

	upstream *upstream.Source // nil: control issues the SVID

	mu     sync.Mutex
	checks []*ready.Checks // guarded by mu
}

// New returns an agent with what is on disk. What is missing there, or of no use, is no error but a reason not to be ready.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.Control == "":
		return nil, errors.New("agent: no address of control")
	case cfg.TrustDomain.IsZero():
		return nil, errors.New("agent: no trust domain")
	case cfg.StateDir == "":
		return nil, errors.New("agent: no state directory")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	bundles := trust.NewBundles()
	a := &Agent{
		Identity: trust.NewIdentity(),
		Bundles:  bundles,
		Guard:    trust.NewGuard(bundles, cfg.Now, cfg.Log),
		cfg:      cfg,
		early:    make(chan struct{}, 1),
		roots:    rootsFile{path: cfg.TrustBundleFile, log: cfg.Log},
	}
	var err error
	if cfg.WorkloadAPI != "" {
		a.upstream, err = upstream.New(upstream.Config{Address: cfg.WorkloadAPI, TrustDomain: cfg.TrustDomain, Identity: a.Identity, Log: cfg.Log})
		if err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
		a.problem.Store(a.upstream.Problem())
	}
	a.Stream, err = configstream.NewClient(configstream.ClientConfig{
		Hello:     cfg.Hello,
		Dial:      a.dialStream,
		StateFile: filepath.Join(cfg.StateDir, stateFile),
		Log:       cfg.Log,
		Now:       cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	a.updateBundles()
	if a.upstream == nil {
		a.loadIdentity()
	}
	return a, nil
}

// loadIdentity takes up the SVID on disk, if it is still good for something.
func (a *Agent) loadIdentity() {
	logger := a.cfg.Log.With("directory", a.cfg.StateDir)
	svid, err := trust.LoadSVID(a.cfg.StateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil && !svid.ID.MemberOf(a.cfg.TrustDomain) {
		err = fmt.Errorf("it is of %s", svid.ID)
	}
	if err == nil {
		err = a.unusable(svid.Certificates)
	}
	if err != nil {
		logger.Warn("SVID on disk is of no use, a join token is needed", "error", err)
		return
	}
	a.Identity.Set(svid)
	logger.Info("SVID taken from disk", "spiffe_id", svid.ID.String(), "not_after", svid.Certificates[0].NotAfter)
}

// Run joins, renews, and keeps the stream open until ctx ends. It comes back when everything has stopped.
func (a *Agent) Run(ctx context.Context) error {
	renewal := trust.Renewal{Identity: a.Identity, Issue: a.issue, Keep: a.keep, Early: a.early, Now: a.cfg.Now, Log: a.cfg.Log}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		children sync.WaitGroup
		mu       sync.Mutex
		errs     []error // guarded by mu
	)
	identify := renewal.Run
	if a.upstream != nil {
		identify = a.followUpstream
	}
	for _, run := range []func(context.Context) error{identify, a.Guard.Run, a.Stream.Run, a.feed, a.watch} {
		children.Go(func() {
			if err := run(ctx); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
			cancel() // none of them ends before the others for a good reason
		})
	}
	children.Wait()
	a.signing.close()
	return errors.Join(errs...)
}

// followUpstream is who the Workload API says, until ctx ends.
func (a *Agent) followUpstream(ctx context.Context) error {
	err := a.upstream.Run(ctx)
	return errors.Join(err, a.upstream.Close())
}
