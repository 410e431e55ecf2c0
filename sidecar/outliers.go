package sidecar

import (
	"errors"
	"net/http"
	"time"

	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// judgedFor is how long after its last request a destination's copies are compared, and maxJudged how many destinations.
	judgedFor = 15 * time.Second
	maxJudged = 256
)

// ejectOutliers leaves those copies alone that do worse than their peers.
func (o *Outbound) ejectOutliers() {
	for _, p := range o.resolver.latest(judgedFor, maxJudged) {
		for _, outlier := range o.resolver.outliers.Judge(o.now(), p.peers()) {
			o.failed(outlier.Key, balance.Outlying, errors.New(outlier.Evidence))
		}
	}
}

// peers returns the plan's candidates as they are compared: by tier, and as to how fast they are, within their cluster, for others are as far away as
// they are.
func (p *plan) peers() []balance.Peer[topology.Target] {
	var peers []balance.Peer[topology.Target]
	for i := range p.Tiers {
		t := &p.Tiers[i]
		for j := range t.Candidates {
			c := &t.Candidates[j]
			capacity := 1
			switch {
			case c.Endpoint != nil:
				capacity = max(capacity, c.Endpoint.Capacity)
			case c.Remote != nil:
				capacity = max(capacity, c.Remote.Ready)
			}
			peers = append(peers, balance.Peer[topology.Target]{
				Key: c.Target, Tier: t.Name, Capacity: float64(capacity), Place: c.Cluster.String(), Out: t.LastResort || t.Drained,
			})
		}
	}
	return peers
}

// gatewayError reports whether an application answers so when it is not itself what fails, but what it is made of; or is on its way up or down.
func gatewayError(status int) bool {
	switch status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	default:
		return false
	}
}
