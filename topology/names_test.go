package topology_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/topology"
)

var long = strings.Repeat("a", 63)

func TestParseClusterName(t *testing.T) {
	for _, s := range []string{"a", "0", "eu-west-1", "a--b", long} {
		c, err := topology.ParseClusterName(s)
		if err != nil || c.String() != s || c.IsZero() {
			t.Errorf("%q is %v, %v", s, c, err)
		}
	}
	for _, s := range []string{"", "-", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", "a\n", "Same", long + "a"} {
		c, err := topology.ParseClusterName(s)
		if !errors.Is(err, topology.ErrName) || !c.IsZero() {
			t.Errorf("%q is %v, %v; want ErrName", s, c, err)
		}
	}
}

func TestParseServiceName(t *testing.T) {
	for _, s := range []string{"a.b", "checkout.shop", long + "." + long} {
		n, err := topology.ParseServiceName(s)
		if err != nil || n.String() != s || n.Name()+"."+n.Namespace() != s {
			t.Errorf("%q is %v, %v", s, n, err)
		}
	}
	for _, s := range []string{"", ".", "a", "a.", ".a", "a.b.c", "A.b", "a.b ", "a." + long + "b"} {
		n, err := topology.ParseServiceName(s)
		if !errors.Is(err, topology.ErrName) || !n.IsZero() || n.String() != "" {
			t.Errorf("%q is %v, %v; want ErrName", s, n, err)
		}
	}
}

func TestNamesOrder(t *testing.T) {
	names := []topology.ServiceName{name(t, "a.b"), name(t, "b.a"), name(t, "a.a")}
	slices.SortFunc(names, topology.ServiceName.Compare)
	if names[0] != name(t, "a.a") || names[1] != name(t, "b.a") || names[2] != name(t, "a.b") {
		t.Errorf("order %v, want namespace first", names)
	}
	n := name(t, "a.b")
	targets := []topology.Target{{Service: n, Cluster: cluster(t, "b")}, {Service: n, Cluster: cluster(t, "a"), Endpoint: "y"}, {Service: n, Cluster: cluster(t, "a"), Endpoint: "x"}}
	slices.SortFunc(targets, topology.Target.Compare)
	if targets[0].Endpoint != "x" || targets[2].Endpoint != "" {
		t.Errorf("order %v", targets)
	}
}

func TestNamesInJSON(t *testing.T) {
	type doc struct {
		Cluster topology.ClusterName
		Service topology.ServiceName
		Scope   topology.Scope
	}
	want := doc{cluster(t, "eu"), name(t, "a.b"), topology.ClusterLocal}
	b, err := json.Marshal(want)
	if err != nil || string(b) != `{"Cluster":"eu","Service":"a.b","Scope":"cluster"}` {
		t.Fatalf("%s, %v", b, err)
	}
	var got doc
	if err := json.Unmarshal(b, &got); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{`{"Cluster":"EU"}`, `{"Service":"a"}`, `{"Scope":"galaxy"}`} {
		if err := json.Unmarshal([]byte(bad), &got); !errors.Is(err, topology.ErrName) {
			t.Errorf("%s: %v, want ErrName", bad, err)
		}
	}
}

func TestParseProtocol(t *testing.T) {
	for _, test := range []struct {
		appProtocol, portName string
		want                  topology.Protocol
	}{
		{"http", "", topology.HTTP},
		{"HTTP", "grpc", topology.HTTP},
		{"http2", "", topology.HTTP2},
		{"kubernetes.io/h2c", "", topology.HTTP2},
		{"grpc", "http", topology.GRPC},
		{"kubernetes.io/ws", "", topology.HTTP},
		{"kubernetes.io/wss", "http", topology.TCP},
		{"tcp", "http", topology.TCP},
		{"https", "http", topology.TCP},
		{"tls", "", topology.TCP},
		{"example.org/own", "http", topology.TCP},
		{"http-x", "http", topology.TCP},
		{"", "http", topology.HTTP},
		{"", "http-api", topology.HTTP},
		{"", "http2", topology.HTTP2},
		{"", "http2-api", topology.HTTP2},
		{"", "h2c", topology.HTTP2},
		{"", "grpc", topology.GRPC},
		{"", "grpc-api", topology.GRPC},
		{"", "grpc-web", topology.HTTP},
		{"", "grpc-web-api", topology.HTTP},
		{"", "grpc-website", topology.GRPC},
		{"", "https", topology.TCP},
		{"", "https-api", topology.TCP},
		{"", "tcp-http", topology.TCP},
		{"", "httpd", topology.TCP},
		{"", "web", topology.TCP},
		{"", "-http", topology.TCP},
		{"", "", topology.TCP},
	} {
		if got := topology.ParseProtocol(test.appProtocol, test.portName); got != test.want {
			t.Errorf("appProtocol %q, name %q is %s, want %s", test.appProtocol, test.portName, got, test.want)
		}
	}
}

func FuzzParseClusterName(f *testing.F) {
	for _, s := range []string{"", "eu", "eu-west-1", "-", "EU", "a.b", long, long + "a", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := topology.ParseClusterName(s)
		checkParsed(t, s, c.String(), err)
	})
}

func FuzzParseServiceName(f *testing.F) {
	for _, s := range []string{"", "a.b", "a", "a.b.c", ".", "a.-", long + "." + long, "a.b\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := topology.ParseServiceName(s)
		checkParsed(t, s, n.String(), err)
		if err == nil {
			again, err := topology.NewServiceName(n.Namespace(), n.Name())
			if err != nil || again != n {
				t.Fatalf("%q is %v, then %v, %v", s, n, again, err)
			}
		}
	})
}

// checkParsed wants what was parsed to print as it was, and to be fit for a DNS name.
func checkParsed(t *testing.T, in, out string, err error) {
	t.Helper()
	if err != nil {
		if !errors.Is(err, topology.ErrName) || out != "" {
			t.Fatalf("%q is %q, %v", in, out, err)
		}
		return
	}
	if in != out {
		t.Fatalf("%q became %q", in, out)
	}
	for label := range strings.SplitSeq(out, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || label != strings.Trim(label, "-") {
			t.Fatalf("%q has label %q", in, label)
		}
	}
}

func FuzzParseProtocol(f *testing.F) {
	for _, s := range [][2]string{{"", ""}, {"http", ""}, {"kubernetes.io/h2c", "x"}, {"", "grpc-web-a"}, {"", "http2-"}, {"\xff", "-"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, appProtocol, portName string) {
		p := topology.ParseProtocol(appProtocol, portName)
		if p != topology.TCP && !p.IsHTTP() {
			t.Fatalf("%q, %q is %q", appProtocol, portName, p)
		}
		if appProtocol != "" && p != topology.ParseProtocol(appProtocol, "") {
			t.Fatalf("the name %q has a say beside appProtocol %q", portName, appProtocol)
		}
	})
}
