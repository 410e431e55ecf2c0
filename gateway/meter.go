package gateway

import (
	"sync"
	"time"
)

// counts is what a carrier has moved since it was made.
type counts struct {
	sent, received uint64 // bytes
	packets, lost  uint64 // sent, and of them sent again or found to be lost; 0 packets: nobody counts
}

const (
	// meterEvery is how often losses are looked at, and meterMemory the part of the older ones that then still counts: the last ten seconds
	// count for two thirds.
	meterEvery  = time.Second
	meterMemory = 0.9
	// fewPackets is below how many nothing is said of the part that was lost.
	fewPackets = 50
)

// meter is how much of what was sent lately was lost. The zero value has seen nothing. Safe for concurrent use.
type meter struct {
	mu            sync.Mutex
	last          counts  // guarded by mu
	packets, lost float64 // guarded by mu: lately
}

// look takes in the counts of now. Call it every meterEvery.
func (m *meter) look(now counts) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.packets = m.packets*meterMemory + since(now.packets, m.last.packets)
	m.lost = m.lost*meterMemory + since(now.lost, m.last.lost)
	m.last = now
}

// since is by how much a counter has grown. One of losses also shrinks: what was taken for lost may come.
func since(now, last uint64) float64 {
	if now < last {
		return 0
	}
	return float64(now - last)
}

// lately returns the packets that were sent, and those of them that were lost.
func (m *meter) lately() (packets, lost float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.packets, min(m.lost, m.packets)
}

// loss is the part that was lost, 0 to 1; 0 also when there were too few to say.
func loss(packets, lost float64) float64 {
	if packets < fewPackets {
		return 0
	}
	return lost / packets
}
