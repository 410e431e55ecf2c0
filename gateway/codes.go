package gateway

import (
	"errors"

	"github.com/quic-go/quic-go"
)

// Why a link's QUIC connection was closed: its application error code (RFC 9000 section 20.2). Append-only.
const (
	closeShutdown    quic.ApplicationErrorCode = 1 + iota // the gateway has drained and stops
	closeDead                                             // nothing was heard for too long
	closeUntrusted                                        // the peer no longer passes verification
	closeUnknownPeer                                      // the peer belongs to no peer cluster
	closeProtocol                                         // the peer broke the control stream's rules
	closeOverloaded                                       // the peer holds too many connections
	closeUnwanted                                         // the peer's gateway is no longer in the configuration
	closeDraining                                         // the gateway drains and takes no new connections
)

// Why one stream was reset: its application error code. Append-only.
const (
	resetBroken    quic.StreamErrorCode = 1 + iota // the other side of the relay broke, or was cut
	resetRefused                                   // a refusal was sent; nobody reads what else comes
	resetCancelled                                 // another gateway answered first, or the caller went away
	resetWithdrawn                                 // the export that the stream was opened for was taken back
)

// Why something of ours ended.
var (
	errShutdown = errors.New("gateway is shutting down")
	errUnwanted = errors.New("no longer in the configuration")
	errRemoved  = errors.New("the cluster is no longer a peer")
	errDead     = errors.New("nothing was heard")
	errRefused  = errors.New("nobody listens there")
)
