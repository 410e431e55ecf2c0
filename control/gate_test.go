package control_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/trust"
)

// guest opens a TLS connection to c without an SVID, and says the first words of HTTP/2.
func (c *cluster) guest(t *testing.T) (*http2.Framer, net.Conn) {
	t.Helper()
	raw, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	conn := tls.Client(raw, c.clientTLS(t, nil))
	if err = conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err = io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err = framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return framer, conn
}

// clientTLS is for connections to c by who has that SVID; nil: nobody.
func (c *cluster) clientTLS(t *testing.T, svid *x509svid.SVID) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(c.dir, "trust-bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := trust.ParsePEM(pem)
	if err != nil {
		t.Fatal(err)
	}
	bundles := trust.NewBundles()
	bundles.Set(c.domain(), trust.Bundle{Authorities: roots})
	var identity *trust.Identity
	if svid != nil {
		identity = trust.NewIdentity()
		identity.Set(svid)
	}
	return trust.ClientConfig(trust.TLS{Identity: identity, Bundles: bundles, Policy: trust.AllowControl(c.domain()), Protocols: []string{"h2"}})
}

// untilClosed reads away what the other side sends, and returns a channel that is closed when it has closed the connection.
func untilClosed(conn net.Conn) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, conn)
	}()
	return ended
}

// happens reports whether c is closed within d.
func happens(c <-chan struct{}, d time.Duration) bool {
	select {
	case <-c:
		return true
	case <-time.After(d):
		return false
	}
}

func TestAGuestGoesSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		synctest.Wait()
		_, conn := eu.guest(t)
		closed := untilClosed(conn)
		if happens(closed, control.GuestLife-time.Second) {
			t.Errorf("closed before %v: a slow join would fail", control.GuestLife)
		}
		if !happens(closed, 2*time.Second) {
			t.Errorf("still open after %v", control.GuestLife)
		}
	})
}

func TestAGuestMaySendLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		synctest.Wait()
		framer, conn := eu.guest(t)
		const unknown = 0xfa // a type of frame that has to be ignored (RFC 9113 section 5.5)
		chunk := make([]byte, 8<<10)
		sent := 0
		for sent < 2*control.GuestBytes {
			if framer.WriteRawFrame(unknown, 0, 0, chunk) != nil {
				break
			}
			sent += len(chunk)
		}
		if sent < control.GuestBytes/2 {
			t.Errorf("closed after %d bytes: a join would fail", sent)
		}
		if !happens(untilClosed(conn), time.Second) {
			t.Errorf("still open after %d bytes", sent)
		}
	})
}

func TestWhoHasAnSVIDMaySendMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		svid := eu.joined(t, eu.token(t, `{"workload":"shop/checkout-0"}`))
		client := eu.call(t, svid)
		for range 8 * control.GuestBytes / (64 << 10) {
			_, err := client.Renew(t.Context(), &identityv1.RenewRequest{Csr: make([]byte, 64<<10)})
			wantCode(t, "a large request", err, codes.InvalidArgument)
		}
		time.Sleep(2 * control.GuestLife)
		_, csr, err := trust.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Renew(t.Context(), &identityv1.RenewRequest{Csr: csr})
		wantCode(t, "a renewal on the same connection", err, codes.OK)
	})
}

func TestAnUnfinishedCallEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		svid := eu.joined(t, eu.token(t, `{"workload":"shop/checkout-0"}`))
		conn, err := grpc.NewClient("passthrough:///control",
			grpc.WithTransportCredentials(credentials.NewTLS(eu.clientTLS(t, svid))),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return eu.dial(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, identityv1.Identity_Renew_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- stream.RecvMsg(new(identityv1.Certificate)) }()
		select {
		case err = <-ended:
			wantCode(t, "a call without a message", err, codes.DeadlineExceeded)
		case <-time.After(2 * control.CallTimeout):
			t.Errorf("a call whose message does not come is open after %v", 2*control.CallTimeout)
		}
	})
}

func TestGuestsKeepNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newMesh(t).start("eu", filepath.Join(t.TempDir(), "eu"), nil)
		eu.registry.declare(t, checkoutManifest)
		synctest.Wait()
		const many = 600
		ofAddress := control.LimitsFor(0)[3]
		var conns []net.Conn
		for range many { // they say nothing at all
			conn, err := eu.dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			conns = append(conns, conn)
		}
		checkout := eu.join(t, sidecarHello("shop/checkout-0"), eu.token(t, `{"workload":"shop/checkout-0"}`))
		eventually(t, 5*time.Second, func() error {
			if !checkout.Stream.Connected() {
				return errors.New("the sidecar is not connected")
			}
			return nil
		})
		open := 0
		for _, conn := range conns {
			if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				open++
			}
		}
		if open > ofAddress {
			t.Errorf("%d silent connections of one address are open, want at most %d", open, ofAddress)
		}
	})
}

func TestLimitsFollowTheNumberOfFiles(t *testing.T) {
	for files, want := range map[int][6]int{
		0:       {24_000, 12_000, 2048, 512, 512, 64},
		1 << 20: {24_000, 12_000, 2048, 512, 512, 64},
		20_000:  {7_440, 3_720, 2048, 512, 512, 64},
		1024:    {352, 176, 128, 128, 32, 32},
		256:     {88, 44, 32, 32, 8, 8},
		1:       {1, 1, 1, 1, 1, 1},
	} {
		if got := control.LimitsFor(files); got != want {
			t.Errorf("%d files: %v, want %v", files, got, want)
		}
	}
}

// from is a listener of connections from the addresses that are sent on it.
type from chan string

func (f from) Accept() (net.Conn, error) {
	address, ok := <-f
	if !ok {
		return nil, net.ErrClosed
	}
	return &arrival{remote: address}, nil
}
func (f from) Close() error   { return nil }
func (f from) Addr() net.Addr { return nil }

type arrival struct {
	net.Conn

	remote string
	closed atomic.Bool
}

func (a *arrival) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(a.remote))
}
func (a *arrival) Close() error { a.closed.Store(true); return nil }

func TestWhichGuestGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const guests, ofAddress = 6, 3
		listener := make(from, 1)
		gate := control.NewGate(listener, 2, 1, guests, ofAddress)
		var all []*control.Visitor
		accept := func(address string) *control.Visitor {
			t.Helper()
			time.Sleep(time.Millisecond) // so that each has its age
			listener <- address
			c, err := gate.Accept()
			if err != nil {
				t.Fatal(err)
			}
			v := c.(*control.Visitor)
			all = append(all, v)
			return v
		}
		want := func(when, want string) {
			t.Helper()
			got := ""
			for _, v := range all {
				if v.Conn.(*arrival).closed.Load() {
					got += "-"
				} else {
					got += "+"
				}
			}
			if got != want {
				t.Errorf("%s: %s, want %s (+ is open)", when, got, want)
			}
		}
		honest := accept("192.0.2.1:1000")
		for range 4 {
			accept("198.51.100.7:1000")
		}
		want("one too many of an address", "+-+++")
		accept("[2001:db8::1]:1")
		accept("[2001:db8::2]:1")
		want("as many as may be", "+-+++++")
		accept("[2001:db8:1::2]:1")
		want("one too many in total: of the address that has most", "+--+++++")
		accept("203.0.113.1:1")
		want("among equals, the oldest", "+--"+"-"+"+++++")

		// Who is known makes room, and is not shed however many come.
		one := spiffeid.RequireFromString("spiffe://eu.example/ns/shop/sa/one")
		other := spiffeid.RequireFromString("spiffe://eu.example/ns/shop/sa/other")
		if err := control.Known(honest, one); err != nil {
			t.Fatal(err)
		}
		accept("203.0.113.2:1")
		want("there is room", "+---++++++")
		if err := control.Guest(all[7]); err != nil {
			t.Fatal(err)
		}
		accept("203.0.113.4:1")
		want("a guest makes room for a stranger", "+---+++++++")
		if err := control.Known(all[9], one); err == nil {
			t.Error("one ID may have two connections, want one")
		}
		if err := control.Known(all[9], other); err != nil {
			t.Errorf("another ID: %v", err)
		}
		if err := control.Known(all[8], spiffeid.RequireFromString("spiffe://eu.example/x")); err == nil {
			t.Error("three known connections, want two at most")
		}
		if err := control.Known(all[1], one); err == nil {
			t.Error("a connection that was shed became known")
		}
		time.Sleep(2 * control.GuestLife)
		want("later", "+--------+-")
		_ = honest.Close()
		_ = honest.Close()
		if err := control.Known(accept("203.0.113.3:1"), one); err != nil {
			t.Errorf("after the first has gone: %v", err)
		}
	})
}

// TestFewIdentitiesKeepNobodyOut: when all places are taken, the identity that has the most gives one up, its oldest, to one that has fewer.
func TestFewIdentitiesKeepNobodyOut(t *testing.T) {
	const places, ofID = 6, 4
	listener := make(from, 1)
	gate := control.NewGate(listener, places, ofID, 100, 100)
	come := func(id string) (*control.Visitor, error) {
		listener <- "192.0.2.1:1"
		c, err := gate.Accept()
		if err != nil {
			t.Fatal(err)
		}
		v := c.(*control.Visitor)
		return v, control.Known(v, spiffeid.RequireFromString("spiffe://eu.example/"+id))
	}
	var of []*control.Visitor
	for _, id := range []string{"thief-1", "thief-1", "thief-1", "thief-1", "thief-2", "thief-2"} {
		v, err := come(id)
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		of = append(of, v)
	}
	closed := func() (n string) {
		for _, v := range of {
			n += map[bool]string{true: "-", false: "+"}[v.Conn.(*arrival).closed.Load()]
		}
		return n
	}
	for i, want := range []string{"-+++++", "--++++"} {
		if _, err := come("honest-" + string(rune('a'+i))); err != nil {
			t.Errorf("one that has none: %v", err)
		}
		if got := closed(); got != want {
			t.Errorf("open are %s, want %s", got, want)
		}
	}
	// Two, two, one and one: who has none takes the place of one of the twos; who has one already would only change places with it.
	if _, err := come("honest-a"); err == nil {
		t.Error("a second one took the place of another's second")
	}
	if _, err := come("honest-c"); err != nil {
		t.Errorf("one that has none: %v", err)
	}
	if _, err := come("honest-d"); err != nil {
		t.Errorf("one that has none: %v", err)
	}
	if _, err := come("honest-e"); err == nil {
		t.Error("all have one, and one more was let in")
	}
}

// TestGuestsAreFew: those whose handshake is over without an SVID are counted for themselves.
func TestGuestsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total, ofAddress = 4, 2
		listener := make(from, 1)
		gate := control.NewGate(listener, 1, 1, total, ofAddress)
		var all []*control.Visitor
		for _, address := range []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "192.0.2.2:1", "192.0.2.2:2", "192.0.2.3:1"} {
			time.Sleep(time.Millisecond)
			listener <- address
			c, err := gate.Accept()
			if err != nil {
				t.Fatal(err)
			}
			v := c.(*control.Visitor)
			if err = control.Guest(v); err != nil {
				t.Fatal(err)
			}
			all = append(all, v)
		}
		got := ""
		for _, v := range all {
			if v.Conn.(*arrival).closed.Load() {
				got += "-"
			} else {
				got += "+"
			}
		}
		// The first for its address, the second for the last one: its address is the oldest of those that have the most.
		if want := "--++++"; got != want {
			t.Errorf("%s, want %s (+ is open)", got, want)
		}
		if err := control.Guest(all[0]); err == nil {
			t.Error("a connection that was shed became a guest")
		}
		time.Sleep(2 * control.GuestLife)
		for i, v := range all {
			if !v.Conn.(*arrival).closed.Load() {
				t.Errorf("guest %d is still there", i)
			}
		}
	})
}
