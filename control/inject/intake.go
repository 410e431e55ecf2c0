package inject

import (
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
)

// Limits of what requests hold before they are reviews. A Pod has some 10 KiB.
const (
	maxBodies = 32 << 20 // bytes, of all requests at a time
	firstPart = 16 << 10 // that each is counted with from its start: what the server itself holds for one is no less
)

var errCrowded = errors.New("too much is being asked at a time: try again")

// intake bounds what the bodies of requests hold together. When there is no room, the address that holds the most makes some, by its
// oldest request: whoever asks for little is not kept out by others that ask for much, or that never come to an end. Safe for concurrent use.
type intake struct {
	limit int

	mu   sync.Mutex
	held int                      // guarded by mu
	from map[netip.Prefix][]*body // guarded by mu: by address, in the order in which they came
}

func newIntake(limit int) *intake {
	return &intake{limit: limit, from: make(map[netip.Prefix][]*body)}
}

// body is one request's, from its start until it is answered.
type body struct {
	in   *intake
	from netip.Prefix
	wake func()        // ends a Read that waits
	gone chan struct{} // closed when it had to make room

	held   int  // guarded by in.mu
	stays  bool // guarded by in.mu: its turn has come, it makes no room any more
	counts bool // guarded by in.mu
}

// enter counts a request in. wake is called at most once, and not after leave.
func (in *intake) enter(from netip.Prefix, wake func()) (*body, error) {
	b := &body{in: in, from: from, wake: wake, gone: make(chan struct{}), counts: true}
	in.mu.Lock()
	defer in.mu.Unlock()
	if err := in.hold(b, firstPart); err != nil {
		return nil, err
	}
	in.from[from] = append(in.from[from], b)
	return b, nil
}

// hold counts n bytes more. The caller holds in.mu.
func (in *intake) hold(b *body, n int) error {
	if !b.counts {
		return errCrowded
	}
	for in.held+n > in.limit {
		v := in.most(b, n)
		if v == b {
			return errCrowded
		}
		in.drop(v)
		close(v.gone)
		v.wake()
	}
	in.held += n
	b.held += n
	return nil
}

// most returns who has to go for n bytes more of b's: the oldest of the address that would hold the most; b, if that has no other. The
// caller holds in.mu.
func (in *intake) most(b *body, n int) *body {
	oldest, most := b, b.held+n
	for _, other := range in.from[b.from] {
		if other != b && !other.stays {
			most += other.held
			if oldest == b {
				oldest = other
			}
		}
	}
	for from, of := range in.from {
		if from == b.from {
			continue
		}
		sum, first := 0, (*body)(nil)
		for _, other := range of {
			if !other.stays {
				sum += other.held
				if first == nil {
					first = other
				}
			}
		}
		if first != nil && sum > most {
			oldest, most = first, sum
		}
	}
	return oldest
}

// drop counts a request out. The caller holds in.mu.
func (in *intake) drop(b *body) {
	if !b.counts {
		return
	}
	b.counts = false
	in.held -= b.held
	of := in.from[b.from]
	if i := slices.Index(of, b); len(of) > 1 {
		in.from[b.from] = slices.Delete(of, i, i+1)
	} else {
		delete(in.from, b.from)
	}
}

// leave counts a request out.
func (b *body) leave() {
	b.in.mu.Lock()
	defer b.in.mu.Unlock()
	b.in.drop(b)
}

// stay reports whether the request still counts, and makes it make no room any more.
func (b *body) stay() bool {
	b.in.mu.Lock()
	defer b.in.mu.Unlock()
	b.stays = b.counts
	return b.counts
}

// read reads all of r, which ends by itself.
func (b *body) read(r io.Reader) ([]byte, error) {
	buf := make([]byte, 0, firstPart)
	for {
		if len(buf) == cap(buf) {
			b.in.mu.Lock()
			err := b.in.hold(b, cap(buf)) // twice as much
			b.in.mu.Unlock()
			if err != nil {
				return nil, err
			}
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			select {
			case <-b.gone:
				return nil, errCrowded
			default:
				return nil, err
			}
		}
	}
}

// addressOf returns where a request comes from, as far as addresses are one's own: a network hands out IPv6 /64s as IPv4 addresses.
// Zero: not known.
func addressOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(addr, bits).Masked()
}
