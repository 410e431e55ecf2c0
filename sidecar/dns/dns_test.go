package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/isthmus-mesh/isthmus/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func name(namespace, n string) topology.ServiceName {
	s, err := topology.NewServiceName(namespace, n)
	if err != nil {
		panic(err)
	}
	return s
}

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// server knows a few services, and doesn't know whether lost.shop exists.
func server() *Server {
	ports := []topology.Port{{Name: "http", Number: 80}, {Number: 81}}
	services := map[topology.ServiceName]*topology.Service{
		name("shop", "checkout"): {Imported: true, Ports: ports, ClusterSetIPs: addrs("241.0.0.7", "fd00::7"), ClusterIPs: addrs("10.0.0.7")},
		name("shop", "cart"):     {Ports: ports, ClusterIPs: addrs("10.0.0.8")},
		name("shop", "abroad"):   {Imported: true, Ports: ports, ClusterSetIPs: addrs("241.0.0.9")},
		name("shop", "names"): {
			Imported: true, ClusterSetIPs: addrs("241.0.0.10"), Ports: []topology.Port{{Name: "Tcp", Number: 42}, {Name: "web", Number: 80}},
			OtherPorts: []topology.OtherPort{{Name: "udp", Number: 42, Protocol: "udp"}, {Number: 43, Protocol: "udp"}, {Name: "stcp", Number: 142, Protocol: "sctp"}},
		},
		name("shop", "headless"): {Imported: true, Headless: true, Ports: ports},
		name("shop", "db"):       db(),
	}
	many := &topology.Service{Imported: true}
	for i := range 200 {
		many.ClusterSetIPs = append(many.ClusterSetIPs, netip.AddrFrom4([4]byte{241, 0, 1, byte(i)}))
	}
	services[name("shop", "many")] = many
	return &Server{
		Lookup: func(_ context.Context, n topology.ServiceName) (*topology.Service, bool) {
			return services[n], n != name("shop", "lost")
		},
		Log: slog.New(slog.DiscardHandler),
	}
}

// db is a headless service of two clusters: of three copies two share a name, and one has none.
func db() *topology.Service {
	group := func(cluster string, target uint16, hosts ...topology.Host) topology.HostGroup {
		c, err := topology.ParseClusterName(cluster)
		if err != nil {
			panic(err)
		}
		return topology.HostGroup{Cluster: c, Hosts: hosts, Ports: []topology.HostPort{
			{Name: "Sql", Number: 5432, Target: target, Protocol: "tcp"}, {Name: "dns", Number: 5432, Target: target, Protocol: "udp"}, {Number: 9, Target: 9, Protocol: "tcp"},
		}}
	}
	return &topology.Service{
		Imported: true, Headless: true, Ports: []topology.Port{{Name: "sql", Number: 5432}},
		Hosts: []topology.HostGroup{
			group("eu", 5432, topology.Host{Name: "db-0", IPs: addrs("10.1.0.1", "fd00::1")}, topology.Host{Name: "twin", IPs: addrs("10.1.0.2")}, topology.Host{Name: "twin", IPs: addrs("10.1.0.3")}),
			group("us", 15432, topology.Host{Name: "10-2-0-4", IPs: addrs("10.2.0.4")}),
		},
	}
}

func query(tb testing.TB, q string, kind dnsmessage.Type, edns int) []byte {
	tb.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	n, err := dnsmessage.NewName(q)
	if err != nil {
		tb.Fatal(err)
	}
	steps := []func() error{
		b.StartQuestions,
		func() error { return b.Question(dnsmessage.Question{Name: n, Type: kind, Class: dnsmessage.ClassINET}) },
		b.StartAdditionals,
	}
	if edns > 0 {
		steps = append(steps, func() error {
			var h dnsmessage.ResourceHeader
			if err = h.SetEDNS0(edns, 0, false); err != nil {
				return err
			}
			return b.OPTResource(h, dnsmessage.OPTResource{})
		})
	}
	for _, s := range steps {
		if err = s(); err != nil {
			tb.Fatal(err)
		}
	}
	out, err := b.Finish()
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// told renders a message: its code, then its records.
func told(tb testing.TB, msg []byte) []string {
	tb.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		tb.Fatalf("%v in %x", err, msg)
	}
	if m.ID != 7 || !m.Response || m.RecursionAvailable {
		tb.Errorf("head %+v", m.Header)
	}
	out := []string{strings.TrimPrefix(m.RCode.String(), "RCode")}
	if m.Truncated {
		out = append(out, "TC")
	}
	if m.Authoritative {
		out = append(out, "AA")
	}
	for section, records := range map[string][]dnsmessage.Resource{"": m.Answers, "authority ": m.Authorities, "extra ": m.Additionals} {
		for _, r := range records {
			var body string
			switch b := r.Body.(type) {
			case *dnsmessage.AResource:
				body = netip.AddrFrom4(b.A).String()
			case *dnsmessage.AAAAResource:
				body = netip.AddrFrom16(b.AAAA).String()
			case *dnsmessage.SRVResource:
				body = fmt.Sprintf("SRV %d %s", b.Port, b.Target)
			case *dnsmessage.TXTResource:
				body = "TXT " + strings.Join(b.TXT, "|")
			case *dnsmessage.SOAResource:
				body = "SOA " + r.Header.Name.String()
			case *dnsmessage.OPTResource:
				body = "OPT"
			}
			out = append(out, section+body)
		}
	}
	slices.Sort(out)
	return out
}

func TestAnswers(t *testing.T) {
	s := server()
	const a, aaaa, srv, txt, soaType = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeSRV, dnsmessage.TypeTXT, dnsmessage.TypeSOA
	setSOA, localSOA := "authority SOA clusterset.local.", "authority SOA cluster.local."
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		want []string
	}{
		{"checkout.shop.svc.clusterset.local.", a, []string{"241.0.0.7", "AA", "Success"}},
		{"CheckOut.shop.svc.CLUSTERSET.local.", a, []string{"241.0.0.7", "AA", "Success"}},
		{"checkout.shop.svc.clusterset.local.", aaaa, []string{"AA", "Success", "fd00::7"}},
		{"checkout.shop.svc.clusterset.local.", txt, []string{"AA", "Success", setSOA}},
		{"checkout.shop.svc.cluster.local.", a, []string{"10.0.0.7", "AA", "Success"}},
		{"checkout.shop.svc.cluster.local.", aaaa, []string{"AA", "Success", localSOA}},
		{"cart.shop.svc.cluster.local.", a, []string{"10.0.0.8", "AA", "Success"}},
		{"cart.shop.svc.clusterset.local.", a, []string{"AA", "NameError", setSOA}},
		{"abroad.shop.svc.cluster.local.", a, []string{"AA", "NameError", localSOA}},
		{"headless.shop.svc.clusterset.local.", a, []string{"AA", "NameError", setSOA}}, // no copy is ready
		{"headless.shop.svc.clusterset.local.", srv, []string{"AA", "NameError", setSOA}},
		{"_http._tcp.headless.shop.svc.clusterset.local.", srv, []string{"AA", "NameError", setSOA}},
		{"db.shop.svc.clusterset.local.", a, []string{"10.1.0.1", "10.1.0.2", "10.1.0.3", "10.2.0.4", "AA", "Success"}},
		{"db.shop.svc.clusterset.local.", aaaa, []string{"AA", "Success", "fd00::1"}},
		{"db-0.eu.db.shop.svc.clusterset.local.", a, []string{"10.1.0.1", "AA", "Success"}},
		{"DB-0.EU.db.shop.svc.clusterset.local.", aaaa, []string{"AA", "Success", "fd00::1"}},
		{"twin.eu.db.shop.svc.clusterset.local.", a, []string{"10.1.0.2", "10.1.0.3", "AA", "Success"}},
		{"twin.eu.db.shop.svc.clusterset.local.", aaaa, []string{"AA", "Success", setSOA}},
		{"10-2-0-4.us.db.shop.svc.clusterset.local.", a, []string{"10.2.0.4", "AA", "Success"}},
		{"10-2-0-4.us.db.shop.svc.clusterset.local.", srv, []string{"AA", "Success", setSOA}},
		{"db-0.us.db.shop.svc.clusterset.local.", a, []string{"AA", "NameError", setSOA}},
		{"db-0.eu.checkout.shop.svc.clusterset.local.", a, []string{"AA", "NameError", setSOA}},
		{"db-0.eu.lost.shop.svc.clusterset.local.", a, []string{"ServerFailure"}},
		{"db-0.eu.db.shop.svc.cluster.local.", a, []string{"AA", "NameError", localSOA}},
		{"eu.db.shop.svc.clusterset.local.", a, []string{"AA", "NameError", setSOA}},
		{"_sql._tcp.db.shop.svc.clusterset.local.", srv, []string{
			"AA", "SRV 15432 10-2-0-4.us.db.shop.svc.clusterset.local.", "SRV 5432 db-0.eu.db.shop.svc.clusterset.local.", "SRV 5432 twin.eu.db.shop.svc.clusterset.local.", "Success",
			"extra 10.1.0.1", "extra 10.1.0.2", "extra 10.1.0.3", "extra 10.2.0.4", "extra fd00::1",
		}},
		{"_sql._tcp.db.shop.svc.clusterset.local.", a, []string{"AA", "Success", setSOA}},
		{"_sql._udp.db.shop.svc.clusterset.local.", srv, []string{"AA", "NameError", setSOA}},
		{"db.shop.svc.clusterset.local.", srv, []string{
			"AA", "SRV 15432 10-2-0-4.us.db.shop.svc.clusterset.local.", "SRV 5432 db-0.eu.db.shop.svc.clusterset.local.", "SRV 5432 twin.eu.db.shop.svc.clusterset.local.", "Success",
			"extra 10.1.0.1", "extra 10.1.0.2", "extra 10.1.0.3", "extra 10.2.0.4", "extra fd00::1",
		}},
		{"none.shop.svc.clusterset.local.", a, []string{"AA", "NameError", setSOA}},
		{"lost.shop.svc.clusterset.local.", a, []string{"ServerFailure"}},
		{"_http._tcp.checkout.shop.svc.clusterset.local.", srv, []string{"AA", "SRV 80 checkout.shop.svc.clusterset.local.", "Success", "extra 241.0.0.7", "extra fd00::7"}},
		{"_http._tcp.checkout.shop.svc.clusterset.local.", a, []string{"AA", "Success", setSOA}},
		{"_http._udp.checkout.shop.svc.clusterset.local.", srv, []string{"AA", "NameError", setSOA}},
		{"names.shop.svc.clusterset.local.", srv, []string{
			"AA", "SRV 142 names.shop.svc.clusterset.local.", "SRV 42 names.shop.svc.clusterset.local.", "SRV 80 names.shop.svc.clusterset.local.", "Success", "extra 241.0.0.10",
		}},
		{"checkout.shop.svc.cluster.local.", srv, []string{"AA", "SRV 80 checkout.shop.svc.cluster.local.", "Success", "extra 10.0.0.7"}},
		{"none.shop.svc.clusterset.local.", srv, []string{"AA", "NameError", setSOA}},
		{"_udp._udp.names.shop.svc.clusterset.local.", srv, []string{"AA", "SRV 42 names.shop.svc.clusterset.local.", "Success", "extra 241.0.0.10"}},
		{"_tcp._tcp.names.shop.svc.clusterset.local.", srv, []string{"AA", "SRV 42 names.shop.svc.clusterset.local.", "Success", "extra 241.0.0.10"}},
		{"_stcp._sctp.names.shop.svc.clusterset.local.", srv, []string{"AA", "SRV 142 names.shop.svc.clusterset.local.", "Success", "extra 241.0.0.10"}},
		{"_udp._tcp.names.shop.svc.clusterset.local.", srv, []string{"AA", "NameError", setSOA}},
		{"_udp._udp.names.shop.svc.clusterset.local.", aaaa, []string{"AA", "Success", setSOA}},
		{"_._tcp.checkout.shop.svc.clusterset.local.", srv, []string{"AA", "NameError", setSOA}},
		{"_tcp.checkout.shop.svc.clusterset.local.", srv, []string{"AA", "Success", setSOA}},
		{"us.checkout.shop.svc.clusterset.local.", a, []string{"AA", "NameError", setSOA}},
		{"a.b.c.d.e.svc.clusterset.local.", a, []string{"AA", "NameError", setSOA}},
		{"dns-version.clusterset.local.", txt, []string{"AA", "Success", "TXT 1.0.0"}},
		{"dns-version.clusterset.local.", a, []string{"AA", "Success", setSOA}},
		{"clusterset.local.", soaType, []string{"AA", "SOA clusterset.local.", "Success"}},
		{"clusterset.local.", a, []string{"AA", "Success", setSOA}},
		{"shop.svc.clusterset.local.", a, []string{"AA", "Success", setSOA}},
		{"pod.clusterset.local.", a, []string{"AA", "NameError", setSOA}},
		{"example.org.", a, []string{"Refused"}},
		{".", a, []string{"Refused"}},
		{"evilclusterset.local.", a, []string{"Refused"}},
	} {
		got := told(t, s.answer(t.Context(), query(t, c.name, c.kind, 0), 0))
		slices.Sort(c.want)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s %s: %s", c.name, c.kind, diff)
		}
	}
}

func TestSizes(t *testing.T) {
	s := server()
	const many = "many.shop.svc.clusterset.local."
	for _, c := range []struct{ edns, limit, most int }{
		{0, 0, minUDP}, {100, 0, minUDP}, {4096, 0, maxUDP}, {65535, 0, maxUDP}, {0, maxTCP, maxTCP},
	} {
		out := s.answer(t.Context(), query(t, many, dnsmessage.TypeA, c.edns), c.limit)
		got := told(t, out)
		if len(out) > c.most || slices.Contains(got, "TC") != (c.limit == 0) {
			t.Errorf("EDNS %d: %d bytes, %.3s", c.edns, len(out), got)
		}
		if slices.Contains(got, "extra OPT") != (c.edns > 0) {
			t.Errorf("EDNS %d: %v", c.edns, got[0])
		}
	}
}

// A long answer to SRV goes without the addresses rather than not at all.
func TestExtraGivesWay(t *testing.T) {
	s := server()
	d := db()
	for i := range 12 {
		d.Hosts[0].Hosts = append(d.Hosts[0].Hosts, topology.Host{Name: fmt.Sprintf("db-%d", i+1), IPs: addrs(fmt.Sprintf("10.1.1.%d", i))})
	}
	s.Lookup = func(context.Context, topology.ServiceName) (*topology.Service, bool) { return d, true }
	got := told(t, s.answer(t.Context(), query(t, "_sql._tcp.db.shop.svc.clusterset.local.", dnsmessage.TypeSRV, 1232), 0))
	if slices.Contains(got, "TC") || slices.Contains(got, "extra 10.1.0.1") || !slices.Contains(got, "SRV 5432 db-12.eu.db.shop.svc.clusterset.local.") {
		t.Errorf("%v", got)
	}
	if got := told(t, s.answer(t.Context(), query(t, "_sql._tcp.db.shop.svc.clusterset.local.", dnsmessage.TypeSRV, 0), maxTCP)); !slices.Contains(got, "extra 10.1.0.1") {
		t.Errorf("over TCP: %v", got)
	}
}

func TestMalformed(t *testing.T) {
	s := server()
	good := query(t, "checkout.shop.svc.clusterset.local.", dnsmessage.TypeA, 0)
	edit := func(f func(m *dnsmessage.Message)) []byte {
		var m dnsmessage.Message
		if err := m.Unpack(good); err != nil {
			t.Fatal(err)
		}
		f(&m)
		out, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, c := range map[string]struct {
		query []byte
		want  string // code; empty: no answer
	}{
		"empty":         {nil, ""},
		"an answer":     {edit(func(m *dnsmessage.Message) { m.Response = true }), ""},
		"too long":      {append(slices.Clone(good), make([]byte, maxQuery)...), ""},
		"cut":           {good[:len(good)-3], "FormatError"},
		"no question":   {edit(func(m *dnsmessage.Message) { m.Questions = nil }), "FormatError"},
		"two questions": {edit(func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }), "FormatError"},
		"an update":     {edit(func(m *dnsmessage.Message) { m.OpCode = 5 }), "NotImplemented"},
		"chaos":         {edit(func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }), "Refused"},
	} {
		out := s.answer(t.Context(), c.query, 0)
		if c.want == "" {
			if out != nil {
				t.Errorf("%s: answered %x", name, out)
			}
			continue
		}
		if out == nil {
			t.Errorf("%s: no answer", name)
			continue
		}
		if got := told(t, out); !slices.Contains(got, c.want) {
			t.Errorf("%s: got %v, want %s", name, got, c.want)
		}
	}
}

func TestOverTheWire(t *testing.T) {
	packets, stream := bothPorts(t)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if runErr := server().Run(ctx, packets, stream); runErr != nil {
			t.Error(runErr)
		}
	})
	defer wg.Wait()
	defer cancel()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, packets.LocalAddr().String())
	}}
	ips, err := r.LookupNetIP(t.Context(), "ip", "checkout.shop.svc.clusterset.local.")
	slices.SortFunc(ips, netip.Addr.Compare)
	if err != nil || !slices.Equal(ips, addrs("241.0.0.7", "fd00::7")) {
		t.Errorf("got %v, %v", ips, err)
	}
	if ips, err = r.LookupNetIP(t.Context(), "ip4", "many.shop.svc.clusterset.local."); err != nil || len(ips) != 200 {
		t.Errorf("truncated, then TCP: got %d, %v", len(ips), err)
	}
	_, srv, err := r.LookupSRV(t.Context(), "http", "tcp", "checkout.shop.svc.clusterset.local.")
	if err != nil || len(srv) != 1 || srv[0].Port != 80 {
		t.Errorf("got %v, %v", srv, err)
	}
	// Several queries on one connection.
	c, err := net.Dial("tcp", packets.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range 3 {
		q := query(t, "cart.shop.svc.cluster.local.", dnsmessage.TypeA, 0)
		if _, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
			t.Fatal(err)
		}
		var head [2]byte
		if _, err = io.ReadFull(c, head[:]); err != nil {
			t.Fatal(err)
		}
		out := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err = io.ReadFull(c, out); err != nil {
			t.Fatal(err)
		}
		if got := told(t, out); !slices.Contains(got, "10.0.0.8") {
			t.Errorf("got %v", got)
		}
	}
}

// TestNoAmplifier: who is not asked from the loopback alone gives long answers over TCP only, and says so in one that holds nothing.
func TestNoAmplifier(t *testing.T) {
	s := server()
	d := db()
	for i := range 47 {
		d.Hosts[0].Hosts = append(d.Hosts[0].Hosts, topology.Host{Name: fmt.Sprintf("db-%d", i+1), IPs: addrs(fmt.Sprintf("10.1.1.%d", i))})
	}
	s.Lookup = func(context.Context, topology.ServiceName) (*topology.Service, bool) { return d, true }
	q := query(t, "db.shop.svc.clusterset.local.", dnsmessage.TypeA, 1232)
	whole := len(s.answer(t.Context(), q, 0))
	if whole <= minUDP {
		t.Fatalf("%d bytes: too short to say anything", whole)
	}
	for address, want := range map[string]int{"127.0.0.1:0": whole, "0.0.0.0:0": len(q)} {
		packets, err := net.ListenPacket("udp4", address)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Run(ctx, packets, nil) })
		c, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", packets.LocalAddr().(*net.UDPAddr).Port))
		if err != nil {
			t.Fatal(err)
		}
		out := make([]byte, 4096)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = c.Write(q)
		n, err := c.Read(out)
		if err != nil || n != want || slices.Contains(told(t, out[:n]), "TC") != (want != whole) {
			t.Errorf("at %s: %d bytes, %v; want %d", address, n, err, want)
		}
		_ = c.Close()
		cancel()
		wg.Wait()
	}
	if got := s.answer(t.Context(), q, maxTCP); len(got) != whole {
		t.Errorf("over TCP: %d bytes, want %d", len(got), whole)
	}
}

// bothPorts binds one port for UDP and TCP.
func bothPorts(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		stream, err := net.Listen("tcp", packets.LocalAddr().String())
		if err == nil {
			return packets, stream
		}
		_ = packets.Close() // somebody has that port for TCP
	}
	t.Fatal("no port is free for both")
	return nil, nil
}

func FuzzAnswer(f *testing.F) {
	f.Add(query(f, "checkout.shop.svc.clusterset.local.", dnsmessage.TypeA, 0))
	f.Add(query(f, "_http._tcp.checkout.shop.svc.clusterset.local.", dnsmessage.TypeSRV, 1232))
	f.Add(query(f, "many.shop.svc.clusterset.local.", dnsmessage.TypeA, 4096))
	f.Add(query(f, "dns-version.clusterset.local.", dnsmessage.TypeTXT, 0))
	f.Add(query(f, "example.org.", dnsmessage.TypeA, 0))
	s := server()
	f.Fuzz(func(t *testing.T, q []byte) {
		out := s.answer(context.Background(), q, 0)
		if out == nil {
			return
		}
		if len(out) > maxUDP {
			t.Fatalf("%d bytes", len(out))
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil {
			t.Fatalf("our own answer: %v", err)
		}
		if !m.Response || len(q) >= 2 && m.ID != binary.BigEndian.Uint16(q) {
			t.Fatalf("head %+v", m.Header)
		}
		for _, question := range m.Questions {
			n := strings.ToLower(question.Name.String())
			if m.RCode != dnsmessage.RCodeRefused && m.RCode != dnsmessage.RCodeFormatError && !strings.HasSuffix(n, "cluster.local.") && !strings.HasSuffix(n, "clusterset.local.") {
				t.Fatalf("%s was answered with %s", n, m.RCode)
			}
		}
	})
}
