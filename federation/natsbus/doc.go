// Package natsbus is federation.Bus over NATS core: messages under fed.v1.>, at most once, nothing stored.
//
// A control plane embeds a Server, which its neighbours reach over TLS, and holds a Client for each server of a neighbour. Both
// ends are known by their Ed25519 bus key and nothing else: the server by the key of its certificate, the client by an NKey
// signature over the server's nonce (https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth).
// Nothing above depends on either: what the bus carries is foreign bytes to a Member.
//
// There is no JetStream here, no websocket, MQTT or monitoring listener, and no cluster, leaf or gateway link between servers
// (docs/adr/0003-no-jetstream.md). NATS doesn't run in virtual time: tests of what is above use membus.
package natsbus

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nkeys"
)

// Limits of one connection, held by the server.
const (
	maxConnections      = 4096    // those that haven't proven a key yet included, which nats-server doesn't count apart
	fileShare           = 4       // and no more than one in so many of the files that this process may open
	maxConnectionsOfKey = 4       // a reconnect may come before the old connection is seen to be dead
	maxSubscriptions    = 16      // of one connection; a Member holds one
	maxPending          = 8 << 20 // bytes that wait for a slow client before it is cut off
	maxControlLine      = 1 << 10
	authTimeout         = 3 * time.Second // for TLS, and again for the key: whoever proves neither takes a place for so long
	pingInterval        = 5 * time.Second
	maxPingsOutstanding = 2
	writeDeadline       = 5 * time.Second
	queueMessages       = 1024    // that wait for a subscriber before it has a gap
	queueBytes          = 8 << 20 // likewise
	flushTimeout        = 10 * time.Second
	connectTimeout      = 5 * time.Second
	reconnectFirst      = 200 * time.Millisecond
	reconnectMax        = 15 * time.Second
	maxNonce            = 64 // bytes of a server's nonce that we sign
	recheckClients      = 500 * time.Millisecond
)

// PublicKey returns the public key as NATS spells a user's ("U…").
func PublicKey(key ed25519.PublicKey) (string, error) {
	b, err := nkeys.Encode(nkeys.PrefixByteUser, key)
	if err != nil {
		return "", fmt.Errorf("natsbus: public key: %w", err)
	}
	return string(b), nil
}

// ParsePublicKey parses what PublicKey returns.
func ParsePublicKey(s string) (ed25519.PublicKey, error) {
	b, err := nkeys.Decode(nkeys.PrefixByteUser, []byte(s))
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("natsbus: %q is not a public NATS user key (U…): %w", s, errors.Join(err))
	}
	return b, nil
}

func keyPair(key ed25519.PrivateKey) (nkeys.KeyPair, string, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, "", fmt.Errorf("natsbus: key of %d bytes, want %d", len(key), ed25519.PrivateKeySize)
	}
	pair, err := nkeys.FromRawSeed(nkeys.PrefixByteUser, key.Seed())
	if err != nil {
		return nil, "", fmt.Errorf("natsbus: key: %w", err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, "", fmt.Errorf("natsbus: key: %w", err)
	}
	return pair, public, nil
}
