// Package federation is what clusters tell each other: signed records over a bus that nobody needs to trust, and what the
// exports of all clusters come to together.
//
// A Member is one cluster's part. It publishes its own records (its trust bundle, its gateways, what it exports) under a signed
// and numbered Head, takes those of the peers that are pinned to it, passes on what is news, and shows of each peer a View: one
// consistent cut, and how fresh it is. Merge makes imports and conditions of all exports, by the rules of KEP-1645. control is
// the user of both. Keys are what a member signs with, and Bus is the courier: natsbus is one over NATS, membus one in memory.
//
// The wire format is api/federation/v1; docs/federation.md is the reference of records, order, freshness and limits. The
// envelope follows DSSE version 1 (https://github.com/secure-systems-lab/dsse), bundles are SPIFFE's
// (https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Trust_Domain_and_Bundle.md).
//
// Concurrency: one goroutine (Member.Run) owns all that records change. Set… only note what is wanted and wake it; Views are
// immutable snapshots. Merge, Thresholds.At and every decoder are pure functions.
package federation
