// Package trust says who a peer is and whether it may speak. It owns the trust domain's own authority, the live
// X.509-SVID of a program, the trust bundles of all known domains, and every tls.Config of the module.
//
// The programs and the federation use it; it uses the standard library and go-spiffe only.
//
// What holds everywhere:
//   - A domain is verified with its own roots and with no other's. URI name constraints are set on what we issue, but are
//     not relied on: they let a sub-domain, another case and a port through.
//   - TLS 1.3 only, no session tickets, no session cache, no 0-RTT. A resumed session skips VerifyPeerCertificate, so
//     verification is in VerifyConnection and reads the bundles of that moment.
//   - What was verified once is verified again: [Guard] closes open connections that no longer pass.
//
// Concurrency: [Identity], [Bundles], [Guard] and [Authority] are safe for concurrent use. Readers never take a lock on
// the way of a handshake: state is immutable behind an atomic pointer. Run methods return nil when their context ends,
// and leave no goroutine behind.
//
// Standards: SPIFFE-ID, X509-SVID and "SPIFFE Trust Domain and Bundle" (github.com/spiffe/spiffe/standards), RFC 5280,
// RFC 8446.
package trust

import "errors"

// ErrNoIdentity tells that this program has no SVID yet.
var ErrNoIdentity = errors.New("trust: no identity yet")

// ErrNoPeer tells that the other side of a connection showed no certificate.
var ErrNoPeer = errors.New("trust: peer showed no certificate")

// ErrNoProtocol tells that two sides agreed on no application protocol (ALPN) where one was required.
var ErrNoProtocol = errors.New("trust: no application protocol agreed on")
