package federation

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Fingerprint pins a federation root key: SHA-256 of the 32-byte Ed25519 public key. The zero value pins nothing.
type Fingerprint [sha256.Size]byte

// ErrFingerprint is what every parse error of a fingerprint is (errors.Is).
var ErrFingerprint = errors.New(`want "sha256:" and 64 hex digits`)

const fingerprintPrefix = "sha256:"

// ParseFingerprint parses "sha256:" and 64 lower-case hex digits, as ClusterPeer.spec.rootFingerprint has it.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	digits, ok := strings.CutPrefix(s, fingerprintPrefix)
	if !ok || len(digits) != hex.EncodedLen(len(f)) || strings.ToLower(digits) != digits {
		return Fingerprint{}, fmt.Errorf("root fingerprint %q: %w", s, ErrFingerprint)
	}
	if _, err := hex.Decode(f[:], []byte(digits)); err != nil {
		return Fingerprint{}, fmt.Errorf("root fingerprint %q: %w", s, ErrFingerprint)
	}
	return f, nil
}

// FingerprintOf returns the fingerprint of a root key.
func FingerprintOf(root ed25519.PublicKey) Fingerprint { return sha256.Sum256(root) }

// String returns what ParseFingerprint takes.
func (f Fingerprint) String() string { return fingerprintPrefix + hex.EncodeToString(f[:]) }

// IsZero reports whether f pins nothing.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }
