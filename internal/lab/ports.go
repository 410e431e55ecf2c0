package lab

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports come from below every system's range of ephemeral ports: else an outgoing connection of somebody else could sit
// on the port of a program that is being restarted. They are taken in whole blocks; the first port of a block is
// never used by a program: whoever is about to use the block holds it, so that two playgrounds which are being created at
// once never pick the same block, with no file between them.
const (
	firstPort = 10000
	lastPort  = 32000
	blockSize = 100
)

var errNoPorts = errors.New("no free block of ports between " + strconv.Itoa(firstPort) + " and " + strconv.Itoa(lastPort))

// claim is a block of ports that this process holds against other playgrounds.
type claim struct {
	first int
	held  net.Listener
}

func (c *claim) release() { _ = c.held.Close() }

// ports returns the ports that programs may use.
func (c *claim) ports() []int {
	out := make([]int, 0, blockSize-1)
	for p := c.first + 1; p < c.first+blockSize; p++ {
		out = append(out, p)
	}
	return out
}

// claimBlocks claims enough blocks for n ports.
func claimBlocks(n int) ([]*claim, error) {
	var claims []*claim
	free := 0
	const blocks = (lastPort - firstPort) / blockSize
	for _, b := range rand.Perm(blocks) { //nolint:gosec // G404: to meet others rarely, not to hide
		if free >= n {
			return claims, nil
		}
		if c, ok := claimBlock(firstPort + b*blockSize); ok {
			claims = append(claims, c)
			free += len(c.ports())
		}
	}
	if free >= n {
		return claims, nil
	}
	for _, c := range claims {
		c.release()
	}
	return nil, errNoPorts
}

// claimBlock takes the block when every port in it is free, for TCP and UDP.
func claimBlock(first int) (*claim, bool) {
	held, err := net.Listen("tcp4", loopback(first))
	if err != nil {
		return nil, false
	}
	c := &claim{first: first, held: held}
	for _, p := range c.ports() {
		if !portFree(p) {
			c.release()
			return nil, false
		}
	}
	return c, true
}

// reclaim takes the blocks that hold the given ports, whoever runs in them: for programs that are started again.
func reclaim(ports []int) []*claim {
	seen := map[int]bool{}
	var claims []*claim
	for _, p := range ports {
		first := p - p%blockSize
		if seen[first] {
			continue
		}
		seen[first] = true
		if held, err := net.Listen("tcp4", loopback(first)); err == nil {
			claims = append(claims, &claim{first: first, held: held})
		}
	}
	return claims
}

// portFree reports whether a program could listen on the port now, over TCP and UDP.
func portFree(port int) bool {
	l, err := net.Listen("tcp4", loopback(port))
	if err != nil {
		return false
	}
	_ = l.Close()
	u, err := net.ListenPacket("udp4", loopback(port))
	if err != nil {
		return false
	}
	_ = u.Close()
	return true
}

const loopbackHost = "127.0.0.1"

func loopback(port int) string { return net.JoinHostPort(loopbackHost, strconv.Itoa(port)) }
