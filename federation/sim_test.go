package federation_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a cluster's member in a simulation, and what it may be restarted with.
type site struct {
	t         *testing.T
	name      topology.ClusterName
	domain    spiffeid.TrustDomain
	keys      *federation.Keys
	freshness federation.Thresholds
	dir       string // of its state; "" keeps nothing
	now       func() time.Time
	roots     []*x509.Certificate

	member  *federation.Member
	metrics *prometheus.Registry
	peers   []federation.PeerSpec
	buses   map[string]federation.Bus
	version int
	stop    func()
}

func domainOf(name string) spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString(name + ".example.org")
}

func newSite(t *testing.T, name string) *site {
	t.Helper()
	keys, err := federation.OpenKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	td := domainOf(name)
	return &site{
		t: t, name: clusterName(t, name), domain: td, keys: keys, now: time.Now, buses: make(map[string]federation.Bus),
		roots: []*x509.Certificate{federation.NewTestRoot(t, td, time.Now().Add(90*24*time.Hour))}, stop: func() {},
	}
}

func (s *site) spec() federation.PeerSpec {
	return federation.PeerSpec{s.name, s.domain, s.keys.Fingerprint()}
}

// own is what the site tells as of its version: every record of it names the version, in several shards.
func (s *site) own() federation.Own {
	gateway, err := spiffeid.FromPathf(s.domain, "/isthmus/gateway/gateway-0")
	if err != nil {
		s.t.Fatal(err)
	}
	own := federation.Own{
		Roots: s.roots,
		Gateways: []federation.Gateway{{
			ID: "gateway-0", QUIC: []string{"203.0.113.7:4443"}, TCP: []string{}, Identity: gateway, Capacity: 1, Zone: "v" + strconv.Itoa(s.version),
		}},
	}
	for _, ns := range []string{"shop", "pay", "search", "mail"} {
		server, err := spiffeid.FromPathf(s.domain, "/ns/%s/sa/default", ns)
		if err != nil {
			s.t.Fatal(err)
		}
		own.Exports = append(own.Exports, federation.Export{
			Name: serviceName(s.t, "web."+ns), Created: time.Unix(1_000_000, 0).UTC(), Type: federation.ClusterSetIP, SessionAffinity: federation.NoAffinity,
			Ports:   []federation.Port{{Name: "http", Number: 80, Transport: federation.TCP, AppProtocol: "http"}},
			Labels:  map[string]string{"version": strconv.Itoa(s.version)},
			Servers: []spiffeid.ID{server}, Capacity: []federation.ZoneCapacity{{Zone: "a", Ready: 2}},
		})
	}
	return own
}

// tell publishes the next version.
func (s *site) tell() {
	s.t.Helper()
	s.version++
	if err := s.member.SetOwn(s.own()); err != nil {
		s.t.Fatal(err)
	}
}

// start makes the member and runs it until stop.
func (s *site) start() {
	s.t.Helper()
	s.metrics = prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("ISTHMUS_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("site", s.name.String())
	}
	var err error
	s.member, err = federation.NewMember(federation.MemberConfig{
		Cluster: s.name, Domain: s.domain, Region: s.name.String() + "-1", Keys: s.keys, StateDir: s.dir, Now: s.now, Freshness: s.freshness,
		Log: log, Metrics: s.metrics,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.member.SetPeers(s.peers); err != nil {
		s.t.Fatal(err)
	}
	s.member.SetBuses(s.buses)
	if s.version > 0 {
		if err := s.member.SetOwn(s.own()); err != nil {
			s.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.member.Run(ctx) }()
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("%s: run: %v", s.name, err)
		}
		s.stop = func() {}
	}
}

// versionIn returns the version that a view is of, or an error when its parts are of several.
func versionIn(v *federation.View) (int, error) {
	if v.Freshness == federation.Waiting {
		return 0, nil
	}
	if len(v.Gateways) != 1 || len(v.Exports) != 4 || len(v.Bundle.Authorities) == 0 {
		return 0, fmt.Errorf("%s: %d gateways, %d exports, %d roots", v.Cluster, len(v.Gateways), len(v.Exports), len(v.Bundle.Authorities))
	}
	version, err := strconv.Atoi(v.Gateways[0].Zone[1:])
	if err != nil {
		return 0, err
	}
	for _, e := range v.Exports {
		if e.Labels["version"] != strconv.Itoa(version) {
			return 0, fmt.Errorf("%s: gateways of version %d, %s of %s", v.Cluster, version, e.Name, e.Labels["version"])
		}
	}
	return version, nil
}

// knows reports whether the site sees o at o's present version, fresh.
func (s *site) knows(o *site) bool {
	s.t.Helper()
	v := s.member.Views().Cluster(o.name)
	if v == nil || v.Freshness != federation.Fresh {
		return false
	}
	version, err := versionIn(v)
	if err != nil {
		s.t.Fatalf("%s: %v", s.name, err)
	}
	return version == o.version
}

// within waits, in virtual time, for something to come true.
func within(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	begun := time.Now()
	for {
		synctest.Wait()
		if holds() {
			return
		}
		if time.Since(begun) > limit {
			t.Fatalf("after %s: still not: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// everybodyKnows waits until all sites see each other.
func everybodyKnows(t *testing.T, limit time.Duration, sites []*site) {
	t.Helper()
	within(t, limit, "everybody knows everybody", func() bool {
		for _, a := range sites {
			for _, b := range sites {
				if a != b && !a.knows(b) {
					return false
				}
			}
		}
		return true
	})
}
