package federation

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ErrGap ends a Bus.Subscribe whose messages may have been lost: the reader was too slow, or the link broke.
var ErrGap = errors.New("messages may have been lost")

// ErrBusClosed is what a Bus answers after its Close.
var ErrBusClosed = errors.New("bus closed")

// Message is what a Bus carries. Whoever holds one must not change its Data: a bus may hand the same bytes to several readers.
type Message struct {
	Subject string
	Data    []byte
}

// Bus is a courier: one connection to one broker. It promises little, and a Member needs no more:
//
//   - It carries messages of up to MaxMessage bytes under SubjectAll, and keeps none: a subscriber gets what others publish
//     from the moment its ready was called, and nothing from before.
//   - The messages of one publisher arrive in the order in which it published them, as long as nothing is lost. Between
//     publishers there is no order. Anything may be lost or arrive twice.
//   - It never delivers what was published through the same Bus.
//   - It is not trusted: what it delivers is foreign bytes.
//
// All methods may be called by several goroutines at once. Implementations are pointers, comparable with ==.
type Bus interface {
	// Publish hands m over. nil means that the courier has taken it, not that anybody got it; while the link is down it is an error
	// at once, and nothing is kept for later. The Bus reads m.Data until its subscribers have let go of it.
	Publish(ctx context.Context, m Message) error

	// Subscribe waits until the link is up, subscribes to SubjectAll, calls ready once the broker has taken the subscription, and
	// from then calls deliver for every message, one at a time, from the calling goroutine. It returns
	//   - ctx.Err() when ctx ends;
	//   - ErrGap when a message may have been lost: the queue of this subscriber was full, or the link broke. The caller subscribes
	//     anew and asks for what it missed;
	//   - ErrBusClosed when the bus has been closed;
	//   - another error when the broker refuses.
	// After it has returned, deliver is not called any more and nothing of the subscription is left in the broker.
	Subscribe(ctx context.Context, ready func(), deliver func(Message)) error
}

// The subjects. They only route: what a message is, and whose, is read from its bytes and signatures alone.
const (
	// SubjectPrefix begins every subject of this protocol.
	SubjectPrefix = "fed.v1."
	// SubjectAll is what a Bus subscribes to, in NATS' notation.
	SubjectAll = SubjectPrefix + ">"
	// SubjectWant carries Wants.
	SubjectWant = SubjectPrefix + "want"
)

// subject returns where a record of domain td goes.
func subject(td spiffeid.TrustDomain, t RecordType, index uint32) string {
	s := SubjectPrefix + strings.ReplaceAll(td.Name(), ".", "_")
	switch t {
	case RecordMemberRoot:
		return s + ".root"
	case RecordHead:
		return s + ".head"
	case RecordTrustBundle:
		return s + ".bundle"
	case RecordGatewaySet:
		return s + ".gateways"
	default:
		return s + ".catalog." + strconv.FormatUint(uint64(index), 10)
	}
}
