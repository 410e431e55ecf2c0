package federation

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/internal/strictproto"
)

// RecordType says what a record is: Envelope.type.
type RecordType string

// The types of version 1.
const (
	RecordMemberRoot   RecordType = "member-root.v1"
	RecordHead         RecordType = "head.v1"
	RecordTrustBundle  RecordType = "trust-bundle.v1"
	RecordGatewaySet   RecordType = "gateway-set.v1"
	RecordCatalogShard RecordType = "catalog-shard.v1"
)

// Limits of an envelope. They are checked before anything is decoded.
const (
	// MaxPayload bounds a record's payload, in bytes.
	MaxPayload = 64 << 10
	// MaxMessage bounds what a Bus must carry: a payload and what the envelope adds to it.
	MaxMessage = MaxPayload + 1<<10
	// maxSignatures leaves room for the old and the new key of a rotation.
	maxSignatures = 4
	maxDepth      = 16
)

// Hash is SHA-256 over the pre-authentication encoding of a record: its name in a Head.
type Hash [sha256.Size]byte

// String returns the first 16 hex digits, for logs.
func (h Hash) String() string { return hex.EncodeToString(h[:8]) }

// keyID is SHA-256 of a 32-byte Ed25519 public key.
type keyID [sha256.Size]byte

func idOf(key ed25519.PublicKey) keyID { return sha256.Sum256(key) }

// record is an envelope as received: nothing in it is known to be true before its signature, or its hash, has been checked.
type record struct {
	kind       RecordType
	payload    []byte
	hash       Hash
	signatures []signature
	raw        []byte // the envelope: what is passed on and kept
}

type signature struct {
	key   keyID
	bytes []byte
}

// pae is DSSE's pre-authentication encoding, version 1
// (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md): what is hashed and signed. The lengths make it
// impossible to read two (type, payload) pairs out of the same bytes.
func pae(t RecordType, payload []byte) []byte {
	b := make([]byte, 0, len("DSSEv1")+len(t)+len(payload)+24)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(t)), 10)
	b = append(b, ' ')
	b = append(b, t...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}

// seal makes a record and signs it with keys; none for a record that a Head names by its hash.
func seal(t RecordType, payload []byte, keys ...ed25519.PrivateKey) (*record, error) {
	if len(payload) > MaxPayload {
		return nil, refuse(TooLarge, "%s of %d bytes; the limit is %d", t, len(payload), MaxPayload)
	}
	encoded := pae(t, payload)
	r := &record{kind: t, payload: payload, hash: sha256.Sum256(encoded)}
	e := &federationv1.Envelope{Type: string(t), Payload: payload}
	for _, key := range keys {
		public, _ := key.Public().(ed25519.PublicKey)
		s := signature{key: idOf(public), bytes: ed25519.Sign(key, encoded)}
		r.signatures = append(r.signatures, s)
		e.Signatures = append(e.Signatures, &federationv1.Signature{KeyId: s.key[:], Signature: s.bytes})
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
	if err != nil {
		return nil, refuse(Malformed, "%s: %v", t, err)
	}
	r.raw = raw
	return r, nil
}

// open reads an envelope. It believes nothing: signatures are checked by verify, the payload is decoded after that.
func open(raw []byte) (*record, error) {
	if len(raw) > MaxMessage {
		return nil, refuse(TooLarge, "envelope of %d bytes; the limit is %d", len(raw), MaxMessage)
	}
	e := new(federationv1.Envelope)
	if err := strictproto.Unmarshal(raw, e, strictproto.Limits{Bytes: MaxMessage, Depth: 2, Repeated: maxSignatures}); err != nil {
		return nil, refuse(Malformed, "envelope: %v", err)
	}
	if len(e.GetPayload()) > MaxPayload {
		return nil, refuse(TooLarge, "payload of %d bytes; the limit is %d", len(e.GetPayload()), MaxPayload)
	}
	r := &record{kind: RecordType(e.GetType()), payload: e.GetPayload(), raw: raw}
	signed := false
	switch r.kind {
	case RecordMemberRoot, RecordHead:
		signed = true
	case RecordTrustBundle, RecordGatewaySet, RecordCatalogShard:
	default:
		return nil, refuse(Malformed, "unknown record type %q", e.GetType())
	}
	if signed != (len(e.GetSignatures()) > 0) {
		return nil, refuse(Malformed, "%s with %d signatures", r.kind, len(e.GetSignatures()))
	}
	for _, s := range e.GetSignatures() {
		if len(s.GetKeyId()) != sha256.Size || len(s.GetSignature()) != ed25519.SignatureSize {
			return nil, refuse(Malformed, "%s: signature of the wrong size", r.kind)
		}
		id := keyID(s.GetKeyId())
		if slices.ContainsFunc(r.signatures, func(o signature) bool { return o.key == id }) {
			return nil, refuse(Malformed, "%s: two signatures of one key", r.kind)
		}
		r.signatures = append(r.signatures, signature{key: id, bytes: s.GetSignature()})
	}
	r.hash = sha256.Sum256(pae(r.kind, r.payload))
	return r, nil
}

// claims reports whether the record says that the key of that id signed it.
func (r *record) claims(id keyID) bool {
	return slices.ContainsFunc(r.signatures, func(s signature) bool { return s.key == id })
}

// verify reports whether key signed the record, over the bytes received.
func (r *record) verify(key ed25519.PublicKey) bool {
	id := idOf(key)
	for _, s := range r.signatures {
		if s.key == id && ed25519.Verify(key, pae(r.kind, r.payload), s.bytes) {
			return true
		}
	}
	return false
}
