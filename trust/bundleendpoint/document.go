package bundleendpoint

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
)

// document is a bundle document that was read.
type document struct {
	bundle    trust.Bundle
	sequenced bool // it has a sequence
	sequence  uint64
	hint      time.Duration // 0: none
	sum       string        // of the keys; however they are written down
	raw       []byte
}

func parseDocument(td spiffeid.TrustDomain, raw []byte) (*document, error) {
	b, sequence, err := trust.ParseBundle(td, raw)
	if err != nil {
		return nil, err
	}
	var outline struct { // ParseBundle has seen to it that this reads one way
		Sequence *uint64 `json:"spiffe_sequence"`
		Hint     int64   `json:"spiffe_refresh_hint"`
	}
	if err = json.Unmarshal(raw, &outline); err != nil {
		return nil, err
	}
	sum, err := sumOf(&b)
	if err != nil {
		return nil, err
	}
	return &document{
		bundle: b, sequenced: outline.Sequence != nil, sequence: sequence, hint: time.Duration(outline.Hint) * time.Second,
		sum: sum, raw: raw,
	}, nil
}

// sumOf returns a hash of a bundle's keys, in whatever order they stand.
func sumOf(b *trust.Bundle) (string, error) {
	var parts [][]byte
	for _, c := range b.Authorities {
		parts = append(parts, append([]byte("x509 "), c.Raw...))
	}
	for _, kid := range slices.Sorted(maps.Keys(b.JWTAuthorities)) {
		der, err := x509.MarshalPKIXPublicKey(b.JWTAuthorities[kid])
		if err != nil {
			return "", err
		}
		parts = append(parts, append([]byte("jwt "+kid+"\x00"), der...))
	}
	slices.SortFunc(parts, bytes.Compare)
	h := sha256.New()
	for _, p := range parts {
		sum := sha256.Sum256(p)
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
