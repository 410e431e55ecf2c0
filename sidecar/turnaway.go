package sidecar

import (
	"crypto/tls"
	"io"
	"net/http"
	"time"

	"golang.org/x/net/http2"

	"github.com/isthmus-mesh/isthmus/sidecar/session"
)

const (
	// goodbye bounds how long the other end of a session that is turned away may take to hear it, and maxUnheard what it may have sent meanwhile, in bytes:
	// closing with that unread would reset the connection, and what it is told would be lost.
	goodbye    = time.Second
	maxUnheard = 64 << 10
)

// turnAway tells the other end of a session, of which nothing was read after the handshake, that nothing it has sent was carried out (GOAWAY, RFC 9113
// section 6.8), and closes it. The caller's sidecar takes its requests elsewhere, those that may not be repeated, too: it may have sent them with the end of the handshake.
func turnAway(c *tls.Conn) {
	defer func() { _ = c.Close() }()
	if c.ConnectionState().NegotiatedProtocol != session.HTTP2 {
		return // one request that becomes another protocol may be repeated, and bytes are told apart by tunnelOpen
	}
	_ = c.SetDeadline(time.Now().Add(goodbye))
	f := http2.NewFramer(c, nil)
	if f.WriteSettings() != nil || f.WriteGoAway(0, http2.ErrCodeNo, nil) != nil || c.CloseWrite() != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c, maxUnheard) // until the other end has heard it, and closes
}

// ending is the answer to what comes when this sidecar takes nothing any more.
func ending() *Failure {
	return &Failure{Status: http.StatusServiceUnavailable, Code: CodeNotReady, Text: errEnding.Error(), Err: errEnding}
}
