package netns

import (
	"context"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/wan"
)

// TestNetwork: hosts of one site reach each other, those of two through the WAN alone, and so does the machine.
func TestNetwork(t *testing.T) {
	if err := Available(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v: sudo go test ./internal/netns", err)
	}
	n := Network{Name: "istest", Sites: []Site{{"eu", []string{"web", "pay"}}, {"us", []string{"shop"}}}}
	if err := n.Make(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Remove(context.Background()); err != nil || n.Exists() {
			t.Error(err)
		}
	})
	if !n.Exists() {
		t.Fatal("it is made, and not there")
	}
	echo(t, n, "eu", "pay")
	echo(t, n, "us", "shop")
	if err := ask(t, n, n.Host("eu", "web"), n.Address("eu", "pay")); err != nil {
		t.Errorf("within a site: %v", err)
	}
	if ask(t, n, n.Host("eu", "web"), n.Address("us", "shop")) == nil {
		t.Error("one site reaches the other with nothing between")
	}

	sites := []wan.Site{open(t, "machine", n.Name, "", netip.PrefixFrom(n.Machine(), 32))}
	for i, s := range n.Sites {
		sites = append(sites, open(t, s.Name, Device, Path(n.Router(s.Name)), n.Prefix(i)))
	}
	r, err := wan.New(1, sites...)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for _, s := range sites {
			_ = s.Device.(io.Closer).Close()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := ask(t, n, n.Host("eu", "web"), n.Address("us", "shop")); err != nil {
		t.Errorf("from site to site: %v", err)
	}
	if err := ask(t, n, "", n.Address("eu", "pay")); err != nil {
		t.Errorf("from the machine: %v", err)
	}
	overheard(t, n)
	if err := r.Set("eu", "us", wan.Link{Down: true}); err != nil {
		t.Fatal(err)
	}
	if ask(t, n, n.Host("eu", "web"), n.Address("us", "shop")) == nil {
		t.Error("through a link that is down")
	}
}

// overheard: what is said between hosts and between sites is heard, with who said it to whom; what a host says to itself is not; and nothing
// else is made out of it.
func overheard(t *testing.T, n Network) {
	t.Helper()
	const said = "hello" // as ask says it
	silent, err := n.Eavesdrop(t.Context(), "what nobody says")
	if err != nil {
		t.Fatal(err)
	}
	e, err := n.Eavesdrop(t.Context(), said)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{n.Address("eu", "pay"), n.Address("us", "shop")} {
		if err := ask(t, n, n.Host("eu", "web"), to); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(t, n, n.Host("us", "shop"), n.Address("us", "shop")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // until what was said is read
	heard := e.Close()
	hops := make(map[string]bool)
	for hop := range heard.Clear {
		from, to, _ := strings.Cut(hop, ">")
		hops[netip.MustParseAddrPort(from).Addr().String()+">"+netip.MustParseAddrPort(to).Addr().String()] = true
	}
	web, pay, shop := n.Address("eu", "web").String(), n.Address("eu", "pay").String(), n.Address("us", "shop").String()
	want := map[string]bool{web + ">" + pay: true, pay + ">" + web: true, web + ">" + shop: true, shop + ">" + web: true}
	if !maps.Equal(hops, want) {
		t.Errorf("heard %v, want %v", hops, want)
	}
	if heard := silent.Close(); len(heard.Clear) > 0 || heard.Packets == 0 {
		t.Errorf("what nobody says was heard: %+v", heard)
	}
}

func open(t *testing.T, site, device, path string, prefix netip.Prefix) wan.Site {
	t.Helper()
	f, err := wan.Open(device, path)
	if err != nil {
		t.Fatal(err)
	}
	return wan.Site{Name: site, Prefixes: []netip.Prefix{prefix}, Device: f}
}

const port = "7000"

// echo serves on a host.
func echo(t *testing.T, n Network, site, host string) {
	t.Helper()
	var l net.Listener
	err := in(Path(n.Host(site, host)), func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(n.Address(site, host).String(), port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
}

// ask has a host, or the machine, speak with another.
func ask(t *testing.T, _ Network, from string, to netip.Addr) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	address := net.JoinHostPort(to.String(), port)
	var c net.Conn
	var err error
	if from == "" {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", address)
	} else {
		c, err = Dial(ctx, from, "tcp", address)
	}
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err = c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 5))
	return err
}
