package federation

import (
	"errors"
	"fmt"
)

// Reason says why a record was not accepted. It is a label of isthmus_federation_refused_total; new ones are only appended.
type Reason string

// The reasons.
const (
	Malformed         Reason = "malformed"        // not the strict encoding of a record
	TooLarge          Reason = "too_large"        // over a named limit
	UnknownKey        Reason = "unknown_key"      // no pinned peer has that key
	BadSignature      Reason = "bad_signature"    // the key is known, the signature is not its
	WrongDomain       Reason = "wrong_domain"     // the payload speaks of another trust domain than the key
	WrongCluster      Reason = "wrong_cluster"    // the payload names another cluster than the ClusterPeer
	Replayed          Reason = "replayed"         // (epoch, seq) not above the high-water mark
	InFuture          Reason = "in_future"        // issued or numbered more than MaxAhead ahead
	HasExpired        Reason = "expired"          // past its own expiry, or its MemberRoot's
	Equivocation      Reason = "equivocation"     // the same (epoch, seq) with two contents
	InQuarantine      Reason = "quarantined"      // from a peer that equivocated, until its next epoch
	Unnamed           Reason = "unnamed"          // no accepted Head names its hash
	BundleWentBack    Reason = "bundle_went_back" // the trust bundle's sequence is lower than before, or means something else
	NotStored         Reason = "not_stored"       // the mark could not be written to disk, so the record is not used
	TooMany           Reason = "too_many"         // more Heads a second than are taken of one peer
	OwnKeyUsedByOther Reason = "own_key_used"     // signed with our key, and not by us
)

// Refusal is the error of a record that was not accepted.
type Refusal struct {
	Reason Reason
	Detail string
}

func (r *Refusal) Error() string { return "federation: " + string(r.Reason) + ": " + r.Detail }

func refuse(why Reason, format string, args ...any) *Refusal {
	return &Refusal{why, fmt.Sprintf(format, args...)}
}

// errDuplicate is a record that is held already: no news, and nothing wrong.
var errDuplicate = errors.New("held already")
