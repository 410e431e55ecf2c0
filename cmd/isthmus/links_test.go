package main

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

func TestLinks(t *testing.T) {
	alone(t)
	carrier := func(gateway, transport, state string, rtt time.Duration, loss float64, streams int) admin.Carrier {
		return admin.Carrier{
			Gateway: gateway, Transport: transport, State: state, RTT: rtt, Jitter: rtt / 10, Loss: loss, Streams: streams,
			Age: time.Minute, Sent: 10, Received: 20, Remote: "192.0.2.1:7443",
		}
	}
	links := []admin.LinkDetail{
		{
			Link: admin.Link{Gateway: "gateway-0", Cluster: "us", State: "up", Transport: "tcp", Why: "QUIC loses 10.0 % of its packets, TCP 0.0 %"},
			Carriers: []admin.Carrier{
				carrier("gateway-0", "quic", "suspect", 90*time.Millisecond, 0.1, 2), carrier("gateway-0", "quic", "up", 80*time.Millisecond, 0.2, 3),
				carrier("gateway-0", "tcp", "up", 81*time.Millisecond, 0, 7), carrier("gateway-1", "quic", "draining", 0, 0, 0),
			},
		},
		{Link: admin.Link{Gateway: "gateway-1", Cluster: "us", State: "down", Detail: "gateway-0: dial: no answer in 2s"}, Carriers: []admin.Carrier{}},
		{Link: admin.Link{Gateway: "gateway-1", Cluster: "ap", State: "up", Transport: "quic"}, Carriers: []admin.Carrier{carrier("gateway-0", "quic", "up", time.Millisecond, 0, 0)}},
	}
	socket := control(t, map[string]any{"/v1/status": healthy, admin.LinksPath: links})
	out, chatter, code := isthmus(t, "links", "us", "--control", socket)
	_ = chatter
	want := `FROM           TO             TRANSPORT   NEW   STATE      CONNECTIONS   RTT    JITTER   LOSS    STREAMS   AGE    DETAIL
eu/gateway-0   us/gateway-0   quic        -     up         2             80ms   8ms      15.0%   5         1m0s   -
eu/gateway-0   us/gateway-0   tcp         yes   up         1             81ms   8.1ms    0.0%    7         1m0s   QUIC loses 10.0 % of its packets, TCP 0.0 %
eu/gateway-0   us/gateway-1   quic        -     draining   1             -      -        0.0%    0         1m0s   -
eu/gateway-1   us             -           -     down       0             -      -        -       -         -      gateway-0: dial: no answer in 2s
`
	if d := cmp.Diff(want, out); d != "" {
		t.Errorf("output (-want +got):\n%s", d)
	}
	if code != exitFinding {
		t.Errorf("exit %d with a link down", code)
	}
	out, _, code = isthmus(t, "links", "ap", "-o", "json", "--control", socket)
	var got []clusterLinks
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitOK {
		t.Fatalf("exit %d, %v", code, err)
	}
	if len(got) != 1 || got[0].Cluster != "eu" || len(got[0].Links) != 1 || got[0].Links[0].Cluster != "ap" || got[0].Links[0].Carriers[0].RTT != time.Millisecond {
		t.Errorf("printed %+v", got)
	}
}
