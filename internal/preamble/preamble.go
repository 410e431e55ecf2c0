// Package preamble is how a mesh stream opens: where it goes, said in the first bytes, and how it fared, said in the first
// bytes that come back (docs/dataplane.md).
//
// A stream (TLS over TCP from a sidecar to a gateway of its own cluster; a QUIC stream between gateways) begins with one frame
// that holds a Preamble. The stream's own bytes follow at once, with no wait. What comes back begins with one frame that holds
// the answer: a Reply, after which the destination's bytes follow, or a Refusal, after which nothing does. A refusal is said
// before any byte reached the destination, so the caller may always go elsewhere.
//
// A frame is a version byte (1), the body's length (uint16, big endian) and the body: a message of package
// isthmus.stream.v1, decoded strictly (internal/strictproto), at most MaxFrame bytes. Reading takes exactly the frame from the
// stream and nothing past it. The gateway and the sidecar use it; all functions are safe for concurrent use.
package preamble

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// The protocols, as ALPN names them (RFC 7301).
const (
	ALPNStream      = "isthmus-stream/1"       // sidecar → gateway, TLS over TCP, one stream each
	ALPNLink        = "isthmus-link/1"         // gateway ↔ gateway, QUIC
	ALPNLinkControl = "isthmus-link-control/1" // gateway ↔ gateway, TLS over TCP: what QUIC has on its first stream
	ALPNLinkStream  = "isthmus-link-stream/1"  // gateway ↔ gateway, TLS over TCP, one stream each
	ALPNLinkMove    = "isthmus-link-move/1"    // gateway ↔ gateway, TLS over TCP: the rest of a stream that began on QUIC

	ALPNTCP = "isthmus-tcp/1" // sidecar → sidecar inside a stream, opaque bytes; HTTP says h2 or http/1.1
	ALPNUDP = "isthmus-udp/1" // sidecar → sidecar inside a stream, datagrams beside it (internal/datagram)
)

// Preamble says where a stream goes.
type Preamble struct {
	Cluster topology.ClusterName
	Service topology.ServiceName
	Port    uint16 // the service's, as exported; never 0
	// Host is the one copy of a headless service that is called, by its address in that cluster; invalid: any copy.
	Host netip.Addr
	// Datagrams: the port is the one for datagrams, and what follows are records (internal/datagram).
	Datagrams bool
	// W3C Trace Context of the request that opens the stream; both may be empty. Carried as they are, checked by who reads them.
	Traceparent, Tracestate string
}

// What trace context may take (https://www.w3.org/TR/trace-context/: a traceparent of version 00 has 55 characters; 512 of
// tracestate must be carried).
const (
	maxTraceparent = 128
	maxTracestate  = 512
)

// Append appends p's frame to dst. Trace context that can't be carried is left out: it is worth less than the stream.
func (p Preamble) Append(dst []byte) []byte {
	m := &streamv1.Preamble{
		Cluster:   p.Cluster.String(),
		Namespace: p.Service.Namespace(),
		Service:   p.Service.Name(),
		Port:      uint32(p.Port),
		Datagrams: p.Datagrams,
	}
	if p.Host.IsValid() {
		m.Host = p.Host.String()
	}
	if isHeader(p.Traceparent, maxTraceparent) {
		m.Traceparent = p.Traceparent
		if isHeader(p.Tracestate, maxTracestate) {
			m.Tracestate = p.Tracestate
		}
	}
	return appendFrame(dst, m)
}

// Read reads one frame. io.EOF means that the stream ended before its first byte; every other error is an *Error or
// the reader's own.
func Read(r io.Reader) (Preamble, error) {
	m := new(streamv1.Preamble)
	if err := readFrame(r, m); err != nil {
		return Preamble{}, err
	}
	p, err := parse(m)
	if err != nil {
		return Preamble{}, &Error{Reason: err.Error(), Err: err}
	}
	return p, nil
}

func parse(m *streamv1.Preamble) (p Preamble, err error) {
	if p.Cluster, err = topology.ParseClusterName(m.GetCluster()); err != nil {
		return Preamble{}, err
	}
	if p.Service, err = topology.NewServiceName(m.GetNamespace(), m.GetService()); err != nil {
		return Preamble{}, err
	}
	if m.GetPort() == 0 || m.GetPort() > 65535 {
		return Preamble{}, fmt.Errorf("port %d: want 1 to 65535", m.GetPort())
	}
	if !isHeader(m.GetTraceparent(), maxTraceparent) || !isHeader(m.GetTracestate(), maxTracestate) {
		return Preamble{}, errors.New("trace context: too long, or not a header's characters")
	}
	if h := m.GetHost(); h != "" {
		p.Host, err = netip.ParseAddr(h)
		if err != nil || p.Host.String() != h || p.Host.Zone() != "" || p.Host.Is4In6() {
			return Preamble{}, fmt.Errorf("host %q: want an IP address in its canonical form", clip(h, maxShown))
		}
	}
	p.Port = uint16(m.GetPort()) //nolint:gosec // G115: checked above
	p.Datagrams = m.GetDatagrams()
	p.Traceparent, p.Tracestate = m.GetTraceparent(), m.GetTracestate()
	return p, nil
}

// isHeader reports whether s could be an HTTP header's value of at most limit bytes: printable ASCII.
func isHeader(s string, limit int) bool {
	if len(s) > limit {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
