package child

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports come from below every system's range of ephemeral ports: else an outgoing connection of somebody else could sit on the port of
// a program that is being restarted.
const (
	firstPort = 10000
	lastPort  = 32000
	portTries = 1000
)

var taken struct {
	sync.Mutex
	ports map[int]bool // handed out by this process; guarded by Mutex
}

// Addresses returns n addresses of loopback that nobody listens on, over TCP or UDP, each only once in the life of this process. Another
// process may still be faster: who can't bind one asks again.
func Addresses(n int) ([]string, error) {
	taken.Lock()
	defer taken.Unlock()
	var out []string
	for range portTries {
		if len(out) == n {
			return out, nil
		}
		port := firstPort + rand.IntN(lastPort-firstPort) //nolint:gosec // G404: to meet others rarely, not to hide
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if taken.ports[port] || !free(address) {
			continue
		}
		if taken.ports == nil {
			taken.ports = make(map[int]bool)
		}
		taken.ports[port] = true
		out = append(out, address)
	}
	return nil, errors.New("no free ports of 127.0.0.1 between " + strconv.Itoa(firstPort) + " and " + strconv.Itoa(lastPort))
}

func free(address string) bool {
	l, err := net.Listen("tcp4", address)
	if err != nil {
		return false
	}
	_ = l.Close()
	u, err := net.ListenPacket("udp4", address)
	if err != nil {
		return false
	}
	_ = u.Close()
	return true
}
