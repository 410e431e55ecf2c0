//go:build linux

package workload

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	workloadv1 "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/trust"
)

// TestX509Source: go-spiffe's own source gets the SVID with its key, sees it renewed, the roots rotated, and domains come and go.
func TestX509Source(t *testing.T) {
	w := newWorld(t, nil)
	first := w.svid("web")
	w.identity.Set(first)
	source, err := workloadapi.NewX509Source(soon(t), workloadapi.WithClientOptions(w.address()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	has := func(want *x509svid.SVID) func() bool {
		return func() bool {
			got, err := source.GetX509SVID()
			return err == nil && got.ID == want.ID && got.Certificates[0].Equal(want.Certificates[0]) && len(got.Certificates) == 2
		}
	}
	until(t, "the first SVID", has(first))
	second := w.svid("web")
	w.identity.Set(second)
	until(t, "the renewed SVID", has(second))

	b := authorityOf(t, domainB)
	if _, err := source.GetX509BundleForTrustDomain(domainB); err == nil {
		t.Error("a domain that nobody trusts has a bundle")
	}
	w.bundles.Set(domainB, trust.Bundle{Authorities: b.Roots()})
	until(t, "the bundle of another domain", func() bool {
		got, err := source.GetX509BundleForTrustDomain(domainB)
		return err == nil && len(got.X509Authorities()) == 1 && got.X509Authorities()[0].Equal(b.Roots()[0])
	})
	next := authorityOf(t, domainA) // stands for the next root of the own domain
	w.bundles.Set(domainA, trust.Bundle{Authorities: append(w.authority.Roots(), next.Roots()...)})
	until(t, "the next root", func() bool {
		got, err := source.GetX509BundleForTrustDomain(domainA)
		return err == nil && len(got.X509Authorities()) == 2
	})
	w.bundles.Remove(domainB)
	until(t, "the end of a domain", func() bool { _, err := source.GetX509BundleForTrustDomain(domainB); return err != nil })
}

// TestRevokedRoots: an authority whose key is revoked is no authority, and a domain that has no other has no bundle.
func TestRevokedRoots(t *testing.T) {
	w := newWorld(t, nil)
	w.identity.Set(w.svid("web"))
	b, c := authorityOf(t, domainB), authorityOf(t, domainB)
	revoked := map[[32]byte]struct{}{trust.Fingerprint(b.Roots()[0]): {}}
	w.bundles.Set(domainB, trust.Bundle{Authorities: append(b.Roots(), c.Roots()...), Revoked: revoked})
	set, err := w.client().FetchX509Bundles(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	got, ok := set.Get(domainB)
	if !ok || got.HasX509Authority(b.Roots()[0]) || !got.HasX509Authority(c.Roots()[0]) {
		t.Errorf("got %v, %v", got, ok)
	}
	w.bundles.Set(domainB, trust.Bundle{Authorities: b.Roots(), Revoked: revoked})
	set, err = w.client().FetchX509Bundles(soon(t))
	if err != nil || set.Len() != 1 {
		t.Errorf("got %v, %v", set, err)
	}
}

// bundleWatcher keeps what it is told.
type bundleWatcher struct {
	updates chan *x509bundle.Set
	errs    chan error
}

func (b bundleWatcher) OnX509BundlesUpdate(s *x509bundle.Set) { b.updates <- s }
func (b bundleWatcher) OnX509BundlesWatchError(err error)     { b.errs <- err }

// TestWatch: a stream is told of changes, and of those alone.
func TestWatch(t *testing.T) {
	w := newWorld(t, nil)
	w.identity.Set(w.svid("web"))
	ctx, cancel := context.WithCancel(t.Context())
	watcher := bundleWatcher{make(chan *x509bundle.Set, 100), make(chan error, 100)}
	done := make(chan error, 1)
	c := w.client()
	go func() { done <- c.WatchX509Bundles(ctx, watcher) }()
	if s := <-watcher.updates; s.Len() != 1 {
		t.Errorf("got %d bundles first", s.Len())
	}
	for range 5 {
		w.identity.Set(w.svid("web")) // no news of bundles
	}
	w.bundles.Set(domainB, trust.Bundle{Authorities: authorityOf(t, domainB).Roots()})
	if s := <-watcher.updates; s.Len() != 2 {
		t.Errorf("got %d bundles then", s.Len())
	}
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("the watch ended with %v", err)
	}
	if n := len(watcher.updates); n != 0 {
		t.Errorf("%d updates too many", n)
	}
}

// TestNotYet: who is the workload waits for its first SVID; who waits too long is told to come again.
func TestNotYet(t *testing.T) {
	w := newWorld(t, nil)
	go func() {
		time.Sleep(20 * time.Millisecond)
		w.identity.Set(w.svid("web"))
	}()
	if svid, err := w.client().FetchX509SVID(soon(t)); err != nil || svid.ID != id(t, "web") {
		t.Errorf("got %v, %v", svid, err)
	}
	w = newWorld(t, func(_ *world, c *Config) { c.Patience = time.Millisecond })
	if _, err := w.client().FetchX509SVID(soon(t)); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no identity yet") {
		t.Errorf("got %v", err)
	}
}

// TestUnusable: what peers would refuse is not handed out, and a stream that has it ends.
func TestUnusable(t *testing.T) {
	w := newWorld(t, func(_ *world, c *Config) { c.Patience = time.Millisecond })
	svid := w.svid("web")
	w.identity.Set(svid)
	stream, err := w.raw().FetchX509SVID(w.called(), new(workloadv1.X509SVIDRequest))
	if err != nil {
		t.Fatal(err)
	}
	if m, e := stream.Recv(); e != nil || len(m.GetSvids()) != 1 {
		t.Fatalf("got %v, %v", m, e)
	}
	w.bundles.Set(domainA, trust.Bundle{Authorities: w.authority.Roots(), Revoked: map[[32]byte]struct{}{trust.Fingerprint(svid.Certificates[0]): {}}})
	if _, e := stream.Recv(); status.Code(e) != codes.Unavailable || !strings.Contains(e.Error(), "revoked") {
		t.Errorf("got %v", e)
	}
	if _, e := w.client().FetchX509SVID(soon(t)); status.Code(e) != codes.Unavailable {
		t.Errorf("got %v", e)
	}
	later := time.Now().Add(2 * time.Hour)
	w = newWorld(t, func(_ *world, c *Config) {
		c.Patience = time.Millisecond
		c.Now = func() time.Time { return later }
	})
	w.identity.Set(w.svid("web"))
	if _, e := w.client().FetchX509SVID(soon(t)); status.Code(e) != codes.Unavailable || !strings.Contains(e.Error(), "expired") {
		t.Errorf("got %v", e)
	}
}

// TestExpiryEndsStream: an SVID that nobody renews is taken back when it ends, without anything else happening.
func TestExpiryEndsStream(t *testing.T) {
	w := newWorld(t, func(w *world, c *Config) {
		c.Patience = time.Millisecond
		a, err := trust.OpenAuthority(trust.AuthorityConfig{TrustDomain: domainA, Dir: t.TempDir(), SVIDLifetime: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		w.authority = a
		w.bundles.Set(domainA, trust.Bundle{Authorities: a.Roots()})
	})
	w.identity.Set(w.svid("web"))
	stream, err := w.raw().FetchX509SVID(w.called(), new(workloadv1.X509SVIDRequest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

// TestNobody: another user gets nothing, not even bundles, and no reason to hope.
func TestNobody(t *testing.T) {
	w := newWorld(t, func(w *world, _ *Config) { w.own.UIDs = []uint32{uint32(os.Getuid()) + 1} })
	w.identity.Set(w.svid("web"))
	c := w.client()
	if _, err := c.FetchX509SVID(soon(t)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("SVID: got %v", err)
	}
	if _, err := c.FetchX509Bundles(soon(t)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("bundles: got %v", err)
	}
	for range 5 * refusalsAtOnce {
		_, _ = c.FetchX509SVID(soon(t))
	}
	if n := w.logs.count("caller refused"); n == 0 || n > 2*refusalsAtOnce {
		t.Errorf("%d lines in the log", n)
	}
	w = newWorld(t, func(w *world, _ *Config) { w.own.UIDs, w.own.AnyUID = nil, true })
	w.identity.Set(w.svid("web"))
	if _, err := w.client().FetchX509SVID(soon(t)); err != nil {
		t.Errorf("any uid: got %v", err)
	}
}

// TestLosesIdentity: a stream ends with PermissionDenied when its caller is nobody any more.
func TestLosesIdentity(t *testing.T) {
	source := newSwitched()
	w := newWorld(t, func(_ *world, c *Config) { c.Source = source })
	source.set([]Identity{{SVID: w.svid("web"), Hint: "a"}, {SVID: w.svid("api"), Hint: "b"}}, nil)
	svids, err := w.client().FetchX509SVIDs(soon(t))
	if err != nil || len(svids) != 2 || svids[0].ID != id(t, "web") || svids[1].Hint != "b" {
		t.Fatalf("got %v, %v", svids, err)
	}
	stream, err := w.raw().FetchX509Bundles(w.called(), new(workloadv1.X509BundlesRequest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); err != nil {
		t.Fatal(err)
	}
	source.set(nil, ErrNobody)
	if _, err = stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
}

// TestHeader: a call without the security header, or with another, is refused.
func TestHeader(t *testing.T) {
	w := newWorld(t, nil)
	w.identity.Set(w.svid("web"))
	for what, ctx := range map[string]context.Context{
		"none":  soon(t),
		"false": metadata.AppendToOutgoingContext(soon(t), "workload.spiffe.io", "false"),
		"twice": metadata.AppendToOutgoingContext(soon(t), "workload.spiffe.io", "true", "workload.spiffe.io", "true"),
	} {
		stream, err := w.raw().FetchX509SVID(ctx, new(workloadv1.X509SVIDRequest))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v", what, err)
		}
		if _, err = w.raw().ValidateJWTSVID(ctx, new(workloadv1.ValidateJWTSVIDRequest)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// TestSlowReader: who takes nothing loses the stream, and holds nobody up.
func TestSlowReader(t *testing.T) {
	w := newWorld(t, func(_ *world, c *Config) { c.SendTimeout = 50 * time.Millisecond })
	w.identity.Set(w.svid("web"))
	stream, err := w.raw().FetchX509SVID(w.called(), new(workloadv1.X509SVIDRequest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = stream.Recv(); err != nil {
		t.Fatal(err)
	}
	roots := w.authority.Roots()
	until(t, "that it is given up", func() bool { // each time another message, until all buffers in between are full
		if _, known := w.bundles.Get(domainB); known {
			w.bundles.Remove(domainB)
		} else {
			w.bundles.Set(domainB, trust.Bundle{Authorities: roots})
		}
		return w.logs.has("takes nothing")
	})
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	if _, err = w.client().FetchX509SVID(soon(t)); err != nil {
		t.Errorf("somebody else: %v", err)
	}
}

// TestDoors: so many connections and no more, of one user, of all who are nobody, and of all.
func TestDoors(t *testing.T) {
	var d doors
	var leaves []func()
	fill := func(n int, uid func(i int) uint32, nobody bool) {
		t.Helper()
		for i := range n {
			leave, err := d.enter(uid(i), nobody)
			if err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			leaves = append(leaves, leave)
		}
	}
	full := func(uid uint32, nobody bool) {
		t.Helper()
		if _, err := d.enter(uid, nobody); err == nil {
			t.Error("it is not full")
		}
	}
	fill(maxConnectionsOfUID, func(int) uint32 { return 1 }, false)
	full(1, false)
	fill(maxConnectionsOfNobodys, func(i int) uint32 { return uint32(i + 10) }, true)
	full(2, true)
	fill(maxConnections-maxConnectionsOfUID-maxConnectionsOfNobodys, func(i int) uint32 { return uint32(i%20 + 100) }, false)
	full(999, false)
	for _, leave := range leaves {
		leave()
		leave() // once counts
	}
	if d.all != 0 || d.nobodys != 0 || len(d.ofUID) != 0 {
		t.Errorf("left: %+v", &d)
	}
}

// TestConnections: beyond the limit, connections are refused, and let in again when others have gone.
func TestConnections(t *testing.T) {
	w := newWorld(t, nil)
	w.identity.Set(w.svid("web"))
	var held []net.Conn
	for range maxConnectionsOfUID {
		c, err := net.Dial("unix", w.socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		held = append(held, c)
	}
	until(t, "a refusal", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := w.client().FetchX509SVID(ctx)
		return err != nil && w.logs.has("too many connections of uid")
	})
	for _, c := range held {
		_ = c.Close()
	}
	until(t, "room again", func() bool { _, err := w.client().FetchX509SVID(soon(t)); return err == nil })
}

// raw is a client of nobody's making, to say what go-spiffe's would not.
func (w *world) raw() workloadv1.SpiffeWorkloadAPIClient {
	w.t.Helper()
	conn, err := grpc.NewClient("unix://"+w.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return workloadv1.NewSpiffeWorkloadAPIClient(conn)
}

func (w *world) called() context.Context {
	return metadata.AppendToOutgoingContext(soon(w.t), "workload.spiffe.io", "true")
}

// switched is a Source that says what it is told to.
type switched struct {
	Own

	state chan switchedState // holds one
}

type switchedState struct {
	ids     []Identity
	err     error
	changed chan struct{}
}

func newSwitched() *switched {
	s := &switched{state: make(chan switchedState, 1)}
	s.state <- switchedState{err: ErrNotYet, changed: make(chan struct{})}
	return s
}

func (s *switched) set(ids []Identity, err error) {
	old := <-s.state
	s.state <- switchedState{ids, err, make(chan struct{})}
	close(old.changed)
}

func (s *switched) Identities(Caller) ([]Identity, <-chan struct{}, error) {
	now := <-s.state
	defer func() { s.state <- now }()
	return now.ids, now.changed, now.err
}
