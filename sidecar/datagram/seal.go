// Package datagram seals datagrams between two sidecars, and carries them beside the TLS session that the keys come from.
//
// A Session is one such TLS session at either end. Its keys are exported from TLS (RFC 8446 section 7.5), one secret for each direction, and
// from a secret a key for every 2²² datagrams. A sealed datagram is a number of 64 bits, then AES-128-GCM under that number: a word of 32 bits
// that says which flow it is of and what it is (Kind), and the payload. Numbers are never used twice; whoever receives takes each once (a
// window, RFC 6479), in whatever order. What does not open is dropped: it says nothing of who sent it.
//
// TLS itself stays the session's backbone. It says who is there, it is closed by trust.Guard when they may no longer be, and its few bytes
// of data say whether the called sidecar takes the session and that both ends are alive. The package internal/datagram is how all of that shares
// a stream. The sidecar is the one user. A Session may be used by several goroutines.
package datagram

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/internal/datagram"
)

const (
	// Exporter labels, in the space that RFC 5705 section 4 leaves to private use.
	labelToCalled = "EXPERIMENTAL isthmus udp/1 to called"
	labelToCaller = "EXPERIMENTAL isthmus udp/1 to caller"

	secretSize = sha256.Size
	keySize    = 16
	nonceSize  = 12
	tagSize    = 16
	numberSize = 8
	wordSize   = 4
	// overhead is what a sealed datagram is longer than its payload.
	overhead = numberSize + wordSize + tagSize

	// MaxPayload is the most that a UDP datagram carries over IPv4.
	MaxPayload = datagram.MaxBody - overhead

	// epochBits: a key seals 2²² datagrams, half of what AES-GCM bears at any size (RFC 9001 appendix B.1.1).
	epochBits = 22
)

// keys are the secrets of one session's two directions.
type keys struct{ send, receive []byte }

// exportKeys takes the keys from a session whose handshake is over.
func exportKeys(cs tls.ConnectionState, caller bool) (keys, error) {
	toCalled, err := cs.ExportKeyingMaterial(labelToCalled, nil, secretSize)
	if err != nil {
		return keys{}, fmt.Errorf("keys: %w", err)
	}
	toCaller, err := cs.ExportKeyingMaterial(labelToCaller, nil, secretSize)
	if err != nil {
		return keys{}, fmt.Errorf("keys: %w", err)
	}
	if caller {
		return keys{send: toCalled, receive: toCaller}, nil
	}
	return keys{send: toCaller, receive: toCalled}, nil
}

// epoch is the key of 2²² datagrams.
type epoch struct {
	number uint64
	aead   cipher.AEAD
	iv     [nonceSize]byte
}

func newEpoch(secret []byte, number uint64) (*epoch, error) {
	material, err := hkdf.Expand(sha256.New, secret, "isthmus udp/1 epoch "+strconv.FormatUint(number, 10), keySize+nonceSize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(material[:keySize])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	e := &epoch{number: number, aead: aead}
	copy(e.iv[:], material[keySize:])
	return e, nil
}

// nonce is the datagram's number under the epoch's own bits (RFC 8446 section 5.3).
func (e *epoch) nonce(number uint64) (n [nonceSize]byte) {
	binary.BigEndian.PutUint64(n[nonceSize-8:], number)
	for i := range n {
		n[i] ^= e.iv[i]
	}
	return n
}

// sealer seals what one end sends. Safe for concurrent use.
type sealer struct {
	secret []byte
	next   atomic.Uint64
	last   atomic.Pointer[epoch]
}

// append appends the sealed datagram to dst.
func (s *sealer) append(dst []byte, word uint32, payload []byte) ([]byte, error) {
	number := s.next.Add(1) - 1
	e := s.last.Load()
	if e == nil || e.number != number>>epochBits {
		var err error
		if e, err = newEpoch(s.secret, number>>epochBits); err != nil {
			return dst, err
		}
		s.last.Store(e) // it may be an older one's: then the next is made once more
	}
	nonce := e.nonce(number)
	dst = binary.BigEndian.AppendUint64(dst, number)
	begin := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, word)
	dst = append(dst, payload...)
	return e.aead.Seal(dst[:begin], nonce[:], dst[begin:], nil), nil
}

// Why a sealed datagram is dropped.
var (
	errShort    = errors.New("too short to be sealed")
	errReplayed = errors.New("its number was taken before, or is too old to tell")
	errForged   = errors.New("it does not open")
)

// opener opens what one end receives. It belongs to one goroutine.
type opener struct {
	secret []byte
	window window
	// epochs are that of the newest datagram that opened, the one before and the one after, as far as they were needed.
	epochs [3]*epoch
}

// open opens sealed in place.
func (o *opener) open(sealed []byte) (word uint32, payload []byte, err error) {
	if len(sealed) < overhead {
		return 0, nil, errShort
	}
	number := binary.BigEndian.Uint64(sealed)
	if !o.window.fresh(number) {
		return 0, nil, errReplayed
	}
	e, err := o.epoch(number >> epochBits)
	if err != nil {
		return 0, nil, err
	}
	nonce := e.nonce(number)
	body := sealed[numberSize:]
	plain, err := e.aead.Open(body[:0], nonce[:], body, nil)
	if err != nil {
		return 0, nil, errForged
	}
	o.window.take(number)
	return binary.BigEndian.Uint32(plain), plain[wordSize:], nil
}

// epoch returns the key of an epoch next to the newest one: whoever forges numbers makes us derive no others.
func (o *opener) epoch(number uint64) (*epoch, error) {
	newest := o.window.newest() >> epochBits
	if number > newest+1 || number+1 < newest {
		return nil, errForged
	}
	slot := &o.epochs[number%3]
	if *slot == nil || (*slot).number != number {
		e, err := newEpoch(o.secret, number)
		if err != nil {
			return nil, err
		}
		*slot = e
	}
	return *slot, nil
}
