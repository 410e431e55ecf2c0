package control

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/workload"
)

// locals gives the processes of this machine the identities of the Workloads that name the user as whom they run (workload.Source). A key and an
// SVID are made when an identity is first asked for, renewed as long as a Workload has it, and taken back when none has it any more.
type locals struct {
	directory *directory
	issuer    issuer
	bundles   *trust.Bundles // as the programs are told of them
	now       func() time.Time
	log       *slog.Logger

	mu       sync.Mutex
	of       *Objects                 // guarded by mu; what byUID was made from
	byUID    map[uint32][]spiffeid.ID // guarded by mu; ordered
	held     map[spiffeid.ID]*local   // guarded by mu
	changed  chan struct{}            // guarded by mu; closed when what Identities returns may be something else
	running  context.Context          //nolint:containedctx // guarded by mu; that of run, for the renewals that it begins; nil: it doesn't run
	renewals sync.WaitGroup           // Add is guarded by mu
}

// local is an identity that somebody has asked for.
type local struct {
	id       spiffeid.ID
	identity *trust.Identity
	tried    bool // guarded by locals.mu; an SVID was asked for, and came or did not
	stop     func()
}

// Identities returns the identities of the Workloads of the caller's user.
func (l *locals) Identities(c workload.Caller) ([]workload.Identity, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	changed := l.changed
	l.look()
	ids := l.byUID[c.UID]
	switch {
	case l.of == nil:
		return nil, changed, fmt.Errorf("%w: the manifests have not been read", workload.ErrNotYet)
	case !c.Known() || len(ids) == 0:
		return nil, changed, fmt.Errorf("%w: no Workload's spec.unix.uid is %d", workload.ErrNobody, c.UID)
	}
	var out []workload.Identity
	for _, id := range ids {
		h := l.hold(id)
		if !h.tried {
			return nil, changed, workload.ErrNotYet // several identities are there together: the first is the default
		}
		svid, err := h.identity.SVID()
		if err != nil {
			continue // its renewal says why, and tries again
		}
		i := workload.Identity{SVID: svid}
		if namespace, account, ok := trust.ParseWorkload(id); ok && len(ids) > 1 {
			i.Hint = namespace + "/" + account
		}
		out = append(out, i)
	}
	if len(out) == 0 {
		return nil, changed, workload.ErrNotYet
	}
	return out, changed, nil
}

// SignJWT makes a JWT-SVID of an identity that Identities returned, if a Workload still has it.
func (l *locals) SignJWT(_ context.Context, id spiffeid.ID, audience []string) (string, error) {
	if _, _, err := l.directory.renewable(id); err != nil {
		return "", err
	}
	if _, blocked := l.issuer.revoked.load().id(id); blocked {
		return "", fmt.Errorf("%s: %w", id, errBlocked)
	}
	return l.issuer.authority.SignJWT(id, audience, 0)
}

// look brings byUID up to the present, and lets go what no Workload has any more. The caller holds mu.
func (l *locals) look() {
	objects := l.directory.registry.Objects().Load()
	if objects == nil || objects == l.of {
		return
	}
	byUID := make(map[uint32][]spiffeid.ID)
	has := make(map[spiffeid.ID]bool)
	for i := range objects.Workloads {
		w := &objects.Workloads[i]
		if w.UID == nil {
			continue
		}
		id, err := trust.WorkloadID(l.directory.domain, w.Namespace, w.ServiceAccount)
		if err != nil {
			continue // the registry has checked the names
		}
		has[id] = true
		if !slices.Contains(byUID[*w.UID], id) {
			byUID[*w.UID] = append(byUID[*w.UID], id)
		}
	}
	for _, ids := range byUID {
		slices.SortFunc(ids, func(a, b spiffeid.ID) int { return cmp.Compare(a.String(), b.String()) })
	}
	for id, h := range l.held {
		if !has[id] {
			h.stop()
			delete(l.held, id)
		}
	}
	l.of, l.byUID = objects, byUID
}

// hold returns an identity, and begins to keep it. The caller holds mu.
func (l *locals) hold(id spiffeid.ID) *local {
	if h := l.held[id]; h != nil {
		return h
	}
	h := &local{id: id, identity: trust.NewIdentity()}
	if l.running == nil {
		return h // not yet, or no more
	}
	if l.held == nil {
		l.held = make(map[spiffeid.ID]*local)
	}
	l.held[id] = h
	ctx, stop := context.WithCancel(l.running)
	h.stop = stop
	early := make(chan struct{}, 1)
	renewal := trust.Renewal{Identity: h.identity, Issue: l.issueTo(h), Early: early, Now: l.now, Log: l.log}
	l.renewals.Go(func() { _ = renewal.Run(ctx) }) // it ends with ctx, and not otherwise
	l.renewals.Go(func() { l.watch(ctx, h, early) })
	l.log.Info("identity given to a process of this machine", "spiffe_id", id.String())
	return h
}

// issueTo issues SVIDs of an identity as long as a Workload has it.
func (l *locals) issueTo(h *local) trust.Issue {
	return func(ctx context.Context, csr []byte) ([]*x509.Certificate, error) {
		_, _, err := l.directory.renewable(h.id)
		var chain []*x509.Certificate
		if err == nil {
			chain, err = l.issuer.issue(ctx, csr, h.id)
		}
		if err != nil { // there is nothing to wait for
			l.mu.Lock()
			h.tried = true
			l.mu.Unlock()
			l.announce()
		}
		return chain, err
	}
}

// watch tells of each SVID of an identity, and asks for another one when it is revoked, until ctx ends.
func (l *locals) watch(ctx context.Context, h *local, early chan<- struct{}) {
	for {
		changed, bundles := h.identity.Changed(), l.bundles.Changed()
		if svid, err := h.identity.SVID(); err == nil {
			l.mu.Lock()
			h.tried = true
			l.mu.Unlock()
			_, err = l.bundles.Verify(svid.Certificates, l.now())
			if refused, _ := errors.AsType[*trust.VerifyError](err); refused != nil && (refused.Reason == trust.Revoked || refused.Reason == trust.BadChain) {
				select {
				case early <- struct{}{}:
				default:
				}
			}
			l.announce()
		}
		select {
		case <-changed:
		case <-bundles:
		case <-ctx.Done():
			return
		}
	}
}

// announce tells that Identities may return something else.
func (l *locals) announce() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// run keeps the identities until ctx ends.
func (l *locals) run(ctx context.Context) error {
	defer l.renewals.Wait()
	l.mu.Lock()
	l.running = ctx
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.running = nil
	}()
	for {
		objects := l.directory.registry.Objects().Changed()
		l.announce()
		select {
		case <-objects:
		case <-ctx.Done():
			return nil
		}
	}
}

// serveWorkloads serves the SPIFFE Workload API to the processes of this machine until ctx ends.
func (c *Control) serveWorkloads(ctx context.Context) error {
	l := &locals{directory: c.directory, issuer: c.issuer(), bundles: c.told, now: c.cfg.Now, log: c.cfg.Log}
	s, err := workload.NewServer(workload.Config{Source: l, Bundles: c.told, Now: c.cfg.Now, Log: c.cfg.Log})
	if err != nil {
		return errors.Join(fmt.Errorf("control: %w", err), c.cfg.WorkloadAPI.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return runAll(ctx, cancel, []func(context.Context) error{
		l.run, func(ctx context.Context) error { return s.Serve(ctx, c.cfg.WorkloadAPI) },
	})
}
