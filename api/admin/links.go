package admin

import (
	"context"
	"net/http"
	"time"
)

// LinksPath is where the links of a cluster's gateways are shown.
const LinksPath = "/v1/links"

// Carries reports whether streams can be opened over the link.
func (l *Link) Carries() bool { return l.State == "up" || l.State == "suspect" }

// LinkDetail is what one gateway reports of its links to one peer cluster, with each connection: GET /v1/links.
type LinkDetail struct {
	Link

	Carriers []Carrier `json:"carriers"`
}

// Carrier is one connection to a gateway of a peer cluster: over QUIC; or the one over TCP that the others beside it, one for each stream, go with.
type Carrier struct {
	Gateway   string        `json:"gateway"`   // of the peer
	Transport string        `json:"transport"` // quic, tcp
	State     string        `json:"state"`     // up, suspect, draining
	RTT       time.Duration `json:"rtt_ns"`
	Jitter    time.Duration `json:"jitter_ns"`
	Loss      float64       `json:"loss"`    // of packets, lately: 0 to 1
	Streams   int           `json:"streams"` // now
	Age       time.Duration `json:"age_ns"`
	Sent      uint64        `json:"sent"` // bytes
	Received  uint64        `json:"received"`
	Remote    string        `json:"remote"` // address
}

// Links asks for the links of the cluster's gateways.
func (c *Client) Links(ctx context.Context) ([]LinkDetail, error) {
	return ask[[]LinkDetail](ctx, c, http.MethodGet, LinksPath, nil)
}
