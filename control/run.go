package control

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

// What lies in the state folder.
const (
	authorityFolder  = "authority"
	keysFolder       = "federation-keys"
	federationFolder = "federation"
	rosterFile       = "roster.json"
	addressesFile    = "clusterset-addresses.json"
	heardFile        = "peers-heard.json"
	revocationsFile  = "revocations.json"
	drainsFile       = "drains.json"
	timelineFile     = "timeline.json"
	trustBundleFile  = "trust-bundle.pem"
	domainsFile      = "federated-domains.json"
	domainsFolder    = "federated-bundles"
)

// What of the state folder whoever moves it must take along. Nothing brings Keys back. Facts are what control has come to know and decided:
// most of it would be found out again. Memory is what peers would have to tell again.
var (
	Keys   = []string{authorityFolder, keysFolder}
	Facts  = []string{rosterFile, addressesFile, heardFile, domainsFile, revocationsFile, drainsFile}
	Memory = []string{federationFolder, domainsFolder}
)

// TrustBundleFile is the file of the state folder with the trust domain's roots, PEM: what gateways and sidecars are started with.
const TrustBundleFile = trustBundleFile

// The conditions of readiness.
const (
	checkManifests = "manifests"
	checkBus       = "bus"
)

// Control is the control plane of one cluster. Make one with New, and Run it.
type Control struct {
	cfg  Config
	self Self

	authority authority
	identity  *trust.Identity
	bundles   *trust.Bundles // of the own trust domain alone
	guard     *trust.Guard
	keys      *federation.Keys
	member    *federation.Member
	follower  *bundleendpoint.Follower
	fleet     *fleet
	tokens    *tokens
	directory *directory
	leases    *leases
	drills    *drills
	traffic   *traffic
	served    *served
	stream    *configstream.Server
	acks      acknowledgements
	revoked   *revocations
	drains    *drains
	timeline  *timeline
	taking    sync.Mutex     // one takeRoots at a time
	told      *trust.Bundles // of all trust domains, as the programs are told of them
	metrics   *metrics

	wake    chan struct{}            // holds one: something for the owner loop to look at
	clients atomic.Pointer[[]string] // bus keys of the peers
	present atomic.Pointer[present]  // nil until the registry was read
	started time.Time
	// restarted tells that there was an authority before: programs may hold SVIDs of it.
	restarted bool
}

// authority is who issues the SVIDs of the own trust domain. Roots and JWTKeys are what its members are verified with; Changed returns a channel
// that is closed when they have changed.
type authority interface {
	Roots() []*x509.Certificate
	JWTKeys() map[string]crypto.PublicKey
	Changed() <-chan struct{}
	IssueAfter(csr []byte, id spiffeid.ID, after time.Time) ([]*x509.Certificate, error)
	SignJWT(id spiffeid.ID, audience []string, ttl time.Duration) (string, error)
	IssueWeb(names []string) (*tls.Certificate, error)
	State() trust.AuthorityState
	Rotation() trust.Rotation
	Run(ctx context.Context) error
}

// present is what is in force, for those who ask. Immutable.
type present struct {
	world  *world
	fleet  fleetState
	views  *federation.Views
	status *Status
	buses  map[string]func() string // state of the line to a peer's server, by cluster
}

// New opens the state folder, makes keys and authority where there are none, and gets the program its own identity.
func New(cfg Config) (*Control, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err = os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	c := &Control{
		cfg:  cfg,
		self: Self{Cluster: cfg.Cluster, Domain: cfg.Domain, Region: cfg.Region, Zone: cfg.Zone},
		wake: make(chan struct{}, 1), started: cfg.Now(),
		identity: trust.NewIdentity(), bundles: trust.NewBundles(), told: trust.NewBundles(),
		tokens: &tokens{now: cfg.Now},
	}
	c.clients.Store(new([]string))
	cfg.Checks.Waiting(checkManifests, "not all of them have been read yet")
	cfg.Checks.Waiting(checkBus, "not started yet")
	if err = c.openTrust(); err != nil {
		return nil, err
	}
	if err = c.openFederation(); err != nil {
		return nil, err
	}
	c.timeline = newTimeline(cfg.Cluster.String(), cfg.Now)
	if err = c.timeline.read(c.path(timelineFile)); err != nil {
		cfg.Log.Error("what happened before is lost", "error", err)
	}
	if c.drains, err = openDrains(c.path(drainsFile), cfg.Now); err != nil {
		return nil, err
	}
	if c.fleet, err = openFleet(c.path(rosterFile), cfg.Domain, cfg.Now, cfg.Log, c.poke); err != nil {
		return nil, err
	}
	c.fleet.svidLifetime = c.authority.State().SVIDLifetime
	c.directory = &directory{domain: cfg.Domain, registry: cfg.Registry, fleet: c.fleet, nodes: nodeNames{cfg.NodeProxies, cfg.Attestor != nil}}
	c.leases = newLeases(c.directory, cfg.Now)
	c.drills = newDrills(cfg.Now, cfg.Log, c.poke, func(s topology.ServiceName, what string) { c.timeline.tell(admin.EventDrill, s, what) })
	c.traffic, c.served = newTraffic(cfg.Now, c.knowsCluster), newServed(cfg.Now, c.noteLimit)
	c.stream = configstream.NewServer(configstream.ServerConfig{
		Log: cfg.Log, Peer: c.peerID, Admit: c.directory.admit, Lease: c.leases.lease,
		OnConnect:    c.fleet.connect,
		OnReport:     c.report,
		OnDisconnect: func(s *configstream.Session, _ error) { c.gone(s) },
		OnApplied:    func(*configstream.Session) { c.poke() },
	})
	c.metrics, err = newMetrics(cfg.Metrics, func() float64 { return float64(len(c.stream.Sessions())) }, telemetry.Expiries(cfg.Now, c.expiries))
	return c, err
}

func (c *Control) path(name string) string { return filepath.Join(c.cfg.StateDir, name) }

// poke wakes the owner loop.
func (c *Control) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// openTrust opens the authority and issues control's own SVID.
func (c *Control) openTrust() error {
	_, err := os.Stat(c.path(keysFolder)) // made at the first start
	c.restarted = err == nil
	if c.authority, err = c.openAuthority(); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	issues := c.authority.State()
	if issues.Kind == trust.KindWorkloadAPI {
		issues.SVIDLifetime = 0 // nobody has said
	}
	c.revoked, err = openRevocations(c.path(revocationsFile), c.cfg.Domain, issues.SVIDLifetime, c.cfg.Now)
	if err != nil {
		return err
	}
	if err = c.takeRoots(); err != nil {
		return err
	}
	c.guard = trust.NewGuard(c.bundles, c.cfg.Now, c.cfg.Log)
	if c.cfg.UpstreamAPI != "" {
		return nil // it has set the identity
	}
	key, csr, err := trust.NewRequest()
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	chain, err := c.issueOwn(context.Background(), csr)
	if err != nil {
		return fmt.Errorf("control: own identity: %w", err)
	}
	id, err := trust.ControlID(c.cfg.Domain)
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	c.identity.Set(&x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key})
	return nil
}

// openAuthority opens the one that the configuration names.
func (c *Control) openAuthority() (authority, error) {
	if c.cfg.UpstreamAPI != "" {
		return c.openWorkloadAuthority()
	}
	if f := c.cfg.Upstream; f != nil {
		return trust.OpenFileAuthority(trust.FileConfig{
			TrustDomain: c.cfg.Domain, Certificate: f.Certificate, Key: f.Key, Bundle: f.Bundle, Dir: c.path(authorityFolder),
			Holds: c.rotationHolds, Now: c.cfg.Now, Log: c.cfg.Log,
		})
	}
	return trust.OpenAuthority(trust.AuthorityConfig{
		TrustDomain: c.cfg.Domain, Dir: c.path(authorityFolder), Holds: c.rotationHolds, Now: c.cfg.Now, Log: c.cfg.Log,
	})
}

func (c *Control) issueOwn(_ context.Context, csr []byte) ([]*x509.Certificate, error) {
	id, err := trust.ControlID(c.cfg.Domain)
	if err != nil {
		return nil, err
	}
	chain, err := c.authority.IssueAfter(csr, id, time.Time{})
	if err == nil {
		c.revoked.note(trust.Fingerprint(chain[0]), id, chain[0].NotAfter)
	}
	return chain, err
}

// ownBundle is what the own trust domain is verified with.
func (c *Control) ownBundle() trust.Bundle {
	return c.revoked.load().onto(c.cfg.Domain, trust.Bundle{Authorities: c.authority.Roots(), JWTAuthorities: c.authority.JWTKeys()})
}

// named tells whether a CA between the own SVIDs and their root says that it is of the own trust domain.
func (c *Control) named() bool {
	svid, err := c.identity.SVID()
	return err == nil && slices.ContainsFunc(svid.Certificates[1:], func(ca *x509.Certificate) bool { return len(ca.URIs) > 0 })
}

// takeRoots puts the authority's roots in force here, and into the file that programs are started with.
func (c *Control) takeRoots() error {
	c.taking.Lock() // or the older of two bundles, without the newer's revocation, could be put in force last
	defer c.taking.Unlock()
	own := c.ownBundle()
	c.bundles.Set(c.cfg.Domain, own)
	// Readable by all: it is public, and programs of other users are started with it.
	if err := atomicfile.Write(c.path(trustBundleFile), trust.MarshalPEM(unrevoked(own).Authorities), 0o644); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

// followRoots takes the authority's roots anew when they change.
func (c *Control) followRoots(ctx context.Context) error {
	for {
		changed := c.authority.Changed()
		if err := c.takeRoots(); err != nil {
			c.cfg.Log.ErrorContext(ctx, "trust bundle not written", "error", err)
		}
		c.poke()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

func (c *Control) openFederation() error {
	var err error
	if c.keys, err = federation.OpenKeys(c.path(keysFolder)); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	c.member, err = federation.NewMember(federation.MemberConfig{
		Cluster: c.cfg.Cluster, Domain: c.cfg.Domain, Region: c.cfg.Region, Keys: c.keys, StateDir: c.path(federationFolder),
		Now: c.cfg.Now, Log: c.cfg.Log, Metrics: c.cfg.Metrics,
	})
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	c.follower, err = bundleendpoint.NewFollower(bundleendpoint.FollowerConfig{
		Store: &domainStore{c.path(domainsFile), c.path(domainsFolder)}, Others: c.bundleOf, Now: c.cfg.Now, Log: c.cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("control: %w", err)
	}
	return nil
}

// busClients returns the bus keys of those who may connect to the own bus server.
func (c *Control) busClients() []string { return *c.clients.Load() }

// Run serves until ctx ends, and then returns nil; or until something that can't be done without fails. It may be called once. It
// closes the listeners of Config.
func (c *Control) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := c.newLoop(ctx)
	if err != nil {
		return errors.Join(err, c.closeListeners())
	}
	c.cfg.Checks.Done(checkBus)
	renewal := trust.Renewal{Identity: c.identity, Issue: c.issueOwn, Now: c.cfg.Now, Log: c.cfg.Log}
	renew := renewal.Run
	if c.cfg.UpstreamAPI != "" {
		renew = func(ctx context.Context) error { <-ctx.Done(); return nil } // the authority follows who we are
	}
	parts := []func(context.Context) error{
		l.follow, c.authority.Run, c.followRoots, renew, c.guard.Run, c.member.Run, c.follower.Run, c.serveGRPC, c.keepTimeline,
	}
	if c.cfg.Socket != nil {
		parts = append(parts, func(ctx context.Context) error { return telemetry.ServeHTTP(ctx, c.cfg.Socket, c.API()) })
	}
	if c.cfg.Admin != nil {
		parts = append(parts, func(ctx context.Context) error {
			return telemetry.ServeHTTP(ctx, c.cfg.Admin, telemetry.Admin(c.cfg.Metrics, c.cfg.Checks))
		})
	}
	if c.cfg.WorkloadAPI != nil {
		parts = append(parts, c.serveWorkloads)
	}
	if c.cfg.Webhook != nil {
		parts = append(parts, c.serveWebhook)
	}
	if c.cfg.FederationEndpoint != nil {
		parts = append(parts, c.serveFederationEndpoint)
	}
	return runAll(ctx, cancel, parts)
}

func (c *Control) closeListeners() error {
	var errs []error
	for _, l := range []interface{ Close() error }{c.cfg.GRPC, c.cfg.Socket, c.cfg.Admin, c.cfg.WorkloadAPI} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if c.cfg.Webhook != nil {
		errs = append(errs, c.cfg.Webhook.Listener.Close())
	}
	if c.cfg.FederationEndpoint != nil {
		errs = append(errs, c.cfg.FederationEndpoint.Listener.Close())
	}
	return errors.Join(errs...)
}

// newLoop starts the own bus and reads what the loop knew before.
func (c *Control) newLoop(ctx context.Context) (*loop, error) {
	addresses, hosts, err := readAllocation(c.path(addressesFile))
	if err != nil {
		return nil, err
	}
	spoken, err := readHeard(c.path(heardFile))
	if err != nil {
		return nil, err
	}
	own, err := c.cfg.Courier.Serve(ctx, c.keys.BusPrivateKey(), c.busClients)
	if err != nil {
		return nil, fmt.Errorf("control: own bus: %w", err)
	}
	return &loop{
		c:     c,
		links: newLinkTracker(), problems: ProblemLog{Log: c.cfg.Log},
		neighbours: &neighbours{
			courier: c.cfg.Courier, key: c.keys.BusPrivateKey(), own: own,
			lines: make(map[string]neighbourLine), log: c.cfg.Log,
		},
		started: time.Now(), addresses: addresses, hosts: hosts, heard: spoken,
	}, nil
}

// runAll runs all parts until ctx ends or one of them ends, and waits for all.
func runAll(ctx context.Context, cancel func(), parts []func(context.Context) error) error {
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		errs  []error // guarded by mu
	)
	for _, part := range parts {
		group.Go(func() {
			defer cancel() // none of them ends before the others for a good reason
			if err := part(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
