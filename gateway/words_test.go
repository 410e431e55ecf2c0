package gateway

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/topology"
)

// A peer says in any bytes why it closed a connection. What is told of it has to reach control.
func TestReportOfAPeersWords(t *testing.T) {
	l := newLink(&Gateway{changed: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler)}, &topology.Cluster{
		Name: clusterName("us"), Gateways: []topology.Gateway{{ID: "gateway-0", QUIC: "192.0.2.1:1"}},
	})
	for _, said := range []string{"\xff\xfe", "\x1b[2J\n", strings.Repeat("é", 1000)} {
		why := &quic.ApplicationError{Remote: true, ErrorMessage: said}
		if s := (slot{gateway: topology.Gateway{ID: "gateway-0"}, transport: transportQUIC}); !l.explain(s, why) || l.explain(s, why) {
			t.Errorf("%q: what is news is told wrong", said)
		}
		report := l.report()
		if _, err := proto.Marshal(report); err != nil {
			t.Errorf("%q: %v", said, err)
		}
		if d := report.GetDetail(); strings.ContainsAny(d, "\x1b\n") || len(d) > maxWords+len("gateway-0: ") || !strings.Contains(d, "Application error") {
			t.Errorf("%q: detail %q", said, d)
		}
	}
}
