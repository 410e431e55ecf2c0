package natsbus

import (
	"sync"

	"github.com/isthmus-mesh/isthmus/federation"
)

// mailbox is the bounded queue between NATS' delivery, which must not wait, and a subscriber, which may.
type mailbox struct {
	filled chan struct{} // holds one: there is something to take

	mu       sync.Mutex
	messages []federation.Message // guarded by mu, as is the rest
	bytes    int
	overflow bool
}

func newMailbox() *mailbox { return &mailbox{filled: make(chan struct{}, 1)} }

// put keeps m, or notes that something was lost.
func (b *mailbox) put(m federation.Message) {
	b.mu.Lock()
	if len(b.messages) >= queueMessages || b.bytes+len(m.Data) > queueBytes {
		b.overflow = true
	} else {
		b.messages = append(b.messages, m)
		b.bytes += len(m.Data)
	}
	b.mu.Unlock()
	select {
	case b.filled <- struct{}{}:
	default:
	}
}

// take returns the oldest message; overflow says that some were lost.
func (b *mailbox) take() (m federation.Message, ok, overflow bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.overflow || len(b.messages) == 0 {
		return federation.Message{}, false, b.overflow
	}
	m = b.messages[0]
	b.messages[0] = federation.Message{}
	b.messages = b.messages[1:]
	b.bytes -= len(m.Data)
	return m, true, false
}
