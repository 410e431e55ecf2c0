package preamble_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/topology"
)

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func cluster(tb testing.TB, s string) topology.ClusterName {
	tb.Helper()
	c, err := topology.ParseClusterName(s)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func service(tb testing.TB, s string) topology.ServiceName {
	tb.Helper()
	n, err := topology.ParseServiceName(s)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

var allowNames = cmp.Comparer(func(a, b preamble.Preamble) bool { return a == b })

func TestPreambleRoundTrip(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, p := range []preamble.Preamble{
		{Cluster: cluster(t, "us"), Service: service(t, "checkout.shop"), Port: 80},
		{Cluster: cluster(t, "us"), Service: service(t, "checkout.shop"), Port: 65535, Traceparent: traceparent, Tracestate: "vendor=1"},
		{
			Cluster: cluster(t, long), Service: service(t, long+"."+long), Port: 1,
			Host:        netip.MustParseAddr("fd00:1111:2222:3333:4444:5555:6666:7777"),
			Traceparent: strings.Repeat("t", 128), Tracestate: strings.Repeat("s", 512),
		},
	} {
		frame := append(p.Append([]byte("before")), "what follows"...)
		r := bytes.NewReader(frame[len("before"):])
		got, err := preamble.Read(iotest.OneByteReader(r))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(p, got, allowNames); diff != "" {
			t.Errorf("read something else (-want +got):\n%s", diff)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "what follows" {
			t.Errorf("left %q in the stream", rest)
		}
	}
}

func TestTraceContextThatCannotBeCarriedIsLeftOut(t *testing.T) {
	p := preamble.Preamble{Cluster: cluster(t, "us"), Service: service(t, "a.b"), Port: 1, Traceparent: traceparent}
	for _, bad := range []string{strings.Repeat("s", 513), "line\nbreak", "\xff"} {
		p.Tracestate = bad
		got, err := preamble.Read(bytes.NewReader(p.Append(nil)))
		if err != nil || got.Tracestate != "" || got.Traceparent != traceparent {
			t.Errorf("tracestate %.10q: read %+v, %v", bad, got, err)
		}
	}
	p.Traceparent = "\x00"
	if got, err := preamble.Read(bytes.NewReader(p.Append(nil))); err != nil || got.Traceparent != "" {
		t.Errorf("read %+v, %v", got, err)
	}
}

func TestReadRefuses(t *testing.T) {
	good := preamble.Preamble{Cluster: cluster(t, "us"), Service: service(t, "a.b"), Port: 80}.Append(nil)
	body := func(b string) string { return "\x01\x00" + string(rune(len(b))) + b }
	for name, in := range map[string]string{
		"version":         "\x02" + string(good[1:]),
		"plain HTTP":      "GET / HTTP/1.1\r\n",
		"too long":        "\x01\x04\x01" + strings.Repeat("x", 1025),
		"not protobuf":    body("\xff\xff\xff"),
		"empty":           body(""),
		"unknown field":   body(string(good[3:]) + "\x78\x01"),
		"twice":           body(string(good[3:]) + "\x0a\x02eu"),
		"no cluster":      body("\x12\x01b\x1a\x01a\x20\x50"),
		"upper case":      body("\x0a\x02US\x12\x01b\x1a\x01a\x20\x50"),
		"no port":         body("\x0a\x02us\x12\x01b\x1a\x01a"),
		"port out of 16":  body("\x0a\x02us\x12\x01b\x1a\x01a\x20\x80\x80\x04"),
		"no address":      body(string(good[3:]) + "\x3a\x04db-0"),
		"another form":    body(string(good[3:]) + "\x3a\x0a0:0:0:0::1"),
		"with a zone":     body(string(good[3:]) + "\x3a\x09fe80::1%a"),
		"mapped":          body(string(good[3:]) + "\x3a\x0e::ffff:1.2.3.4"),
		"control in text": body(string(good[3:]) + "\x2a\x01\x07"),
	} {
		var malformed *preamble.Error
		if p, err := preamble.Read(strings.NewReader(in)); !errors.As(err, &malformed) {
			t.Errorf("%s: read %+v, %v; want an *Error", name, p, err)
		}
	}
}

func TestReadTellsEndFromCut(t *testing.T) {
	good := preamble.Preamble{Cluster: cluster(t, "us"), Service: service(t, "a.b"), Port: 80}.Append(nil)
	if _, err := preamble.Read(strings.NewReader("")); !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("nothing: %v, want io.EOF", err)
	}
	for n := 1; n < len(good); n++ {
		if _, err := preamble.Read(bytes.NewReader(good[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d of %d bytes: %v, want io.ErrUnexpectedEOF", n, len(good), err)
		}
	}
}

func TestReply(t *testing.T) {
	path := []string{"eu/gateway-0", "us/gateway-1"}
	got, err := preamble.ReadReply(bytes.NewReader(preamble.AppendReply(nil, preamble.Reply{Path: path})))
	if err != nil || !cmp.Equal(got.Path, path) {
		t.Errorf("read %+v, %v", got, err)
	}
}

func TestRefusal(t *testing.T) {
	for number, name := range streamv1.Code_name {
		code := streamv1.Code(number)
		if code == streamv1.Code_CODE_UNSPECIFIED || code == streamv1.Code_CODE_OK {
			continue
		}
		sent := &preamble.Refusal{Code: code, Detail: "checkout.shop", Path: []string{"us/gateway-1"}}
		_, err := preamble.ReadReply(bytes.NewReader(preamble.AppendRefusal(nil, sent)))
		got, ok := errors.AsType[*preamble.Refusal](err)
		if !ok || !cmp.Equal(got, sent) {
			t.Fatalf("%s: read %v", name, err)
		}
		if !errors.Is(err, &preamble.Refusal{Code: code}) || errors.Is(err, &preamble.Refusal{Code: code + 1}) {
			t.Errorf("%s: errors.Is does not go by the code", name)
		}
		if strings.Contains(preamble.Words(code), "code") {
			t.Errorf("%s has no words", name)
		}
		if want := code != streamv1.Code_CODE_BAD_PREAMBLE; got.Retriable() != want {
			t.Errorf("%s: Retriable() = %t", name, !want)
		}
		if !strings.HasPrefix(name, "CODE_") || preamble.Label(code) != strings.ToLower(name[5:]) {
			t.Errorf("%s: label %q", name, preamble.Label(code))
		}
	}
}

func TestRefusalNeverReadsAsSuccess(t *testing.T) {
	for _, code := range []streamv1.Code{streamv1.Code_CODE_UNSPECIFIED, streamv1.Code_CODE_OK} {
		_, err := preamble.ReadReply(bytes.NewReader(preamble.AppendRefusal(nil, &preamble.Refusal{Code: code})))
		if !errors.Is(err, &preamble.Refusal{Code: streamv1.Code_CODE_INTERNAL}) {
			t.Errorf("%s: read %v", code, err)
		}
	}
}

// What is too long or not text must not keep an answer from being sent.
func TestAnswersAlwaysFit(t *testing.T) {
	junk := strings.Repeat("ä\xff", 5000)
	r := &preamble.Refusal{Code: streamv1.Code_CODE_LINK_DOWN, Detail: junk, Path: []string{junk, "", junk, junk, junk, junk}}
	frame := preamble.AppendRefusal(nil, r)
	if len(frame) > 3+preamble.MaxFrame {
		t.Errorf("frame of %d bytes", len(frame))
	}
	_, err := preamble.ReadReply(bytes.NewReader(frame))
	got, ok := errors.AsType[*preamble.Refusal](err)
	if !ok || got.Detail == "" || len(got.Path) == 0 || len(got.Path) > preamble.MaxPath {
		t.Errorf("read %v", err)
	}
	if _, err := preamble.ReadReply(bytes.NewReader(preamble.AppendReply(nil, preamble.Reply{Path: r.Path}))); err != nil {
		t.Error(err)
	}
}

func TestServerName(t *testing.T) {
	s := service(t, "checkout.shop")
	for host, want := range map[netip.Addr]string{
		{}:                               "80.checkout.shop.svc.clusterset.local",
		netip.MustParseAddr("10.2.0.7"):  "10-2-0-7.80.checkout.shop.svc.clusterset.local",
		netip.MustParseAddr("fd00:1::7"): "fd00-0001-0000-0000-0000-0000-0000-0007.80.checkout.shop.svc.clusterset.local",
		netip.IPv6Loopback():             "0000-0000-0000-0000-0000-0000-0000-0001.80.checkout.shop.svc.clusterset.local",
	} {
		name := preamble.ServerName(s, 80, host)
		if name != want {
			t.Errorf("ServerName = %q, want %q", name, want)
		}
		if got, port, gotHost, err := preamble.ParseServerName(name); err != nil || got != s || port != 80 || gotHost != host {
			t.Errorf("ParseServerName = %v, %d, %s, %v", got, port, gotHost, err)
		}
	}
	for _, bad := range []string{
		"", "checkout.shop.svc.clusterset.local", "80.checkout.svc.clusterset.local", "0.a.b.svc.clusterset.local", "080.a.b.svc.clusterset.local",
		"65536.a.b.svc.clusterset.local", "+80.a.b.svc.clusterset.local", "80.a.b.svc.cluster.local", "80.a.b.svc.clusterset.local.", "80.A.b.svc.clusterset.local",
		"80.x.a.b.svc.clusterset.local", "80.a.b.svc.clusterset.local\x00", "80..b.svc.clusterset.local", ".svc.clusterset.local",
		"10-2-0-7.checkout.shop.svc.clusterset.local", "10-2-0-07.80.a.b.svc.clusterset.local", "10-2-0.80.a.b.svc.clusterset.local", "10-2-0-256.80.a.b.svc.clusterset.local",
		"fd00--7.80.a.b.svc.clusterset.local", "0000-0000-0000-0000-0000-ffff-0a00-0001.80.a.b.svc.clusterset.local", "10-2-0-7.10-2-0-7.80.a.b.svc.clusterset.local",
	} {
		if s, port, _, err := preamble.ParseServerName(bad); !errors.Is(err, preamble.ErrServerName) {
			t.Errorf("%q parsed as %s, %d, %v", bad, s, port, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(preamble.Preamble{Cluster: cluster(f, "us"), Service: service(f, "a.b"), Port: 80, Traceparent: traceparent}.Append(nil))
	f.Add(preamble.Preamble{Cluster: cluster(f, "us"), Service: service(f, "a.b"), Port: 80, Host: netip.MustParseAddr("fd00::7")}.Append(nil))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte("\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := preamble.Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := preamble.Read(bytes.NewReader(p.Append(nil)))
		if err != nil || again != p {
			t.Errorf("%+v became %+v, %v", p, again, err)
		}
	})
}

func FuzzReadReply(f *testing.F) {
	f.Add(preamble.AppendReply(nil, preamble.Reply{Path: []string{"eu/gateway-0"}}))
	f.Add(preamble.AppendRefusal(nil, &preamble.Refusal{Code: streamv1.Code_CODE_NO_ENDPOINT, Detail: "a.b"}))
	f.Add([]byte("\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		reply, err := preamble.ReadReply(bytes.NewReader(b))
		if refusal, ok := errors.AsType[*preamble.Refusal](err); ok {
			_, again := preamble.ReadReply(bytes.NewReader(preamble.AppendRefusal(nil, refusal)))
			if got, ok := errors.AsType[*preamble.Refusal](again); !ok || got.Error() != refusal.Error() {
				t.Errorf("%v became %v", refusal, again)
			}
			return
		}
		if err != nil {
			return
		}
		if _, err := preamble.ReadReply(bytes.NewReader(preamble.AppendReply(nil, reply))); err != nil {
			t.Errorf("%+v: %v", reply, err)
		}
	})
}

func FuzzParseServerName(f *testing.F) {
	f.Add("80.checkout.shop.svc.clusterset.local")
	f.Add("080.a.b.svc.clusterset.local")
	f.Add("10-2-0-7.80.a.b.svc.clusterset.local")
	f.Fuzz(func(t *testing.T, name string) {
		s, port, host, err := preamble.ParseServerName(name)
		if err == nil && preamble.ServerName(s, port, host) != name {
			t.Errorf("%q has a second spelling, %q", name, preamble.ServerName(s, port, host))
		}
	})
}
