package federation

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/internal/strictproto"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Limits of the two signed records.
const (
	maxSigningKeys  = 4
	maxRootLifetime = 400 * 24 * time.Hour
	maxRecords      = 2 + Shards // of a Head: bundle, gateways, shards
	maxRevokedKeys  = 1024
	maxRevokedIDs   = 256
	maxIDBytes      = 12 << 10 // of all revoked IDs
	maxAcknowledged = 256      // bundles of others
	maxMarkBytes    = 8 << 10  // of their names
	maxBegunBy      = 1 << 40  // seconds
	maxHeadLifetime = 10 * time.Minute
	maxRegion       = 63 // bytes
)

// memberRoot is MemberRoot, parsed.
type memberRoot struct {
	domain      spiffeid.TrustDomain
	epoch       uint64
	signingKeys []ed25519.PublicKey
	issued      time.Time
	notAfter    time.Time
	rootKey     ed25519.PublicKey
}

func (m memberRoot) seal(root ed25519.PrivateKey) (*record, error) {
	p := &federationv1.MemberRoot{
		TrustDomain: m.domain.Name(),
		Epoch:       m.epoch,
		Issued:      timestamppb.New(m.issued),
		NotAfter:    timestamppb.New(m.notAfter),
		RootKey:     m.rootKey,
	}
	for _, key := range m.signingKeys {
		p.SigningKeys = append(p.SigningKeys, key)
	}
	return sealMessage(RecordMemberRoot, p, root)
}

func decodeMemberRoot(r *record) (memberRoot, error) {
	p := new(federationv1.MemberRoot)
	if err := unmarshal(r, RecordMemberRoot, p, maxSigningKeys); err != nil {
		return memberRoot{}, err
	}
	m := memberRoot{epoch: p.GetEpoch(), rootKey: p.GetRootKey()}
	var err error
	if m.domain, err = decodeDomain(r.kind, p.GetTrustDomain()); err != nil {
		return memberRoot{}, err
	}
	if m.issued, err = decodeTime(r.kind, "issued", p.GetIssued()); err != nil {
		return memberRoot{}, err
	}
	if m.notAfter, err = decodeTime(r.kind, "not_after", p.GetNotAfter()); err != nil {
		return memberRoot{}, err
	}
	switch n := len(p.GetSigningKeys()); {
	case m.epoch == 0:
		return memberRoot{}, refuse(Malformed, "%s: epoch 0", r.kind)
	case len(m.rootKey) != ed25519.PublicKeySize:
		return memberRoot{}, refuse(Malformed, "%s: root key of %d bytes", r.kind, len(m.rootKey))
	case n == 0 || n > maxSigningKeys:
		return memberRoot{}, refuse(Malformed, "%s: %d signing keys; want 1 to %d", r.kind, n, maxSigningKeys)
	case m.notAfter.Sub(m.issued) > maxRootLifetime || !m.notAfter.After(m.issued):
		return memberRoot{}, refuse(Malformed, "%s: good from %s to %s; at most %s", r.kind, m.issued, m.notAfter, maxRootLifetime)
	}
	for _, key := range p.GetSigningKeys() {
		if len(key) != ed25519.PublicKeySize {
			return memberRoot{}, refuse(Malformed, "%s: signing key of %d bytes", r.kind, len(key))
		}
		m.signingKeys = append(m.signingKeys, key)
	}
	return m, nil
}

// ref names a record in a Head.
type ref struct {
	kind  RecordType
	index uint32
	hash  Hash
}

// head is Head, parsed.
type head struct {
	domain  spiffeid.TrustDomain
	cluster topology.ClusterName
	region  string
	epoch   uint64
	seq     uint64
	issued  time.Time
	expires time.Time
	refs    []ref // a bundle, at most one gateway set, and shards, no index twice
	revoked [][sha256.Size]byte
	// revokedIDs are of the domain; zero: whatever was issued to it.
	revokedIDs   map[spiffeid.ID]time.Time
	acknowledged map[spiffeid.TrustDomain]uint64
	previous     []byte
}

func (h head) seal(signing ed25519.PrivateKey) (*record, error) {
	p := &federationv1.Head{
		TrustDomain: h.domain.Name(),
		Cluster:     h.cluster.String(),
		Region:      h.region,
		Epoch:       h.epoch,
		Seq:         h.seq,
		Issued:      timestamppb.New(h.issued),
		Expires:     timestamppb.New(h.expires),
		Previous:    h.previous,
	}
	for _, r := range h.refs {
		p.Records = append(p.Records, &federationv1.RecordRef{Type: string(r.kind), Index: r.index, Hash: r.hash[:]})
	}
	for _, key := range h.revoked {
		p.RevokedKeys = append(p.RevokedKeys, key[:])
	}
	for _, id := range slices.SortedFunc(maps.Keys(h.revokedIDs), compareIDs) {
		p.RevokedIds = append(p.RevokedIds, &federationv1.RevokedID{SpiffeId: id.String(), BegunBy: begunBy(h.revokedIDs[id])})
	}
	for _, td := range slices.SortedFunc(maps.Keys(h.acknowledged), spiffeid.TrustDomain.Compare) {
		p.Acknowledged = append(p.Acknowledged, &federationv1.BundleMark{TrustDomain: td.Name(), Sequence: h.acknowledged[td]})
	}
	return sealMessage(RecordHead, p, signing)
}

func decodeHead(r *record) (head, error) {
	p := new(federationv1.Head)
	if err := unmarshal(r, RecordHead, p, maxRevokedKeys); err != nil {
		return head{}, err
	}
	h := head{epoch: p.GetEpoch(), seq: p.GetSeq(), region: p.GetRegion(), previous: p.GetPrevious()}
	var err error
	if h.domain, err = decodeDomain(r.kind, p.GetTrustDomain()); err != nil {
		return head{}, err
	}
	if h.cluster, err = topology.ParseClusterName(p.GetCluster()); err != nil {
		return head{}, refuse(Malformed, "%s: %v", r.kind, err)
	}
	if h.issued, err = decodeTime(r.kind, "issued", p.GetIssued()); err != nil {
		return head{}, err
	}
	if h.expires, err = decodeTime(r.kind, "expires", p.GetExpires()); err != nil {
		return head{}, err
	}
	switch {
	case h.epoch == 0 || h.seq == 0:
		return head{}, refuse(Malformed, "%s: (epoch, seq) is (%d, %d)", r.kind, h.epoch, h.seq)
	case !h.expires.After(h.issued) || h.expires.Sub(h.issued) > maxHeadLifetime:
		return head{}, refuse(Malformed, "%s: good from %s to %s; at most %s", r.kind, h.issued, h.expires, maxHeadLifetime)
	case len(h.previous) != 0 && len(h.previous) != sha256.Size:
		return head{}, refuse(Malformed, "%s: previous hash of %d bytes", r.kind, len(h.previous))
	case len(h.region) > maxRegion:
		return head{}, refuse(TooLarge, "%s: region of %d bytes; the limit is %d", r.kind, len(h.region), maxRegion)
	}
	if h.refs, err = decodeRefs(p.GetRecords()); err != nil {
		return head{}, err
	}
	for _, key := range p.GetRevokedKeys() {
		if len(key) != sha256.Size {
			return head{}, refuse(Malformed, "%s: revoked key of %d bytes", r.kind, len(key))
		}
		h.revoked = append(h.revoked, [sha256.Size]byte(key))
	}
	if h.revokedIDs, err = decodeRevokedIDs(h.domain, p.GetRevokedIds()); err != nil {
		return head{}, err
	}
	h.acknowledged, err = decodeMarks(p.GetAcknowledged())
	return h, err
}

func decodeRevokedIDs(domain spiffeid.TrustDomain, in []*federationv1.RevokedID) (map[spiffeid.ID]time.Time, error) {
	if len(in) > maxRevokedIDs {
		return nil, refuse(TooLarge, "%s: %d revoked IDs; the limit is %d", RecordHead, len(in), maxRevokedIDs)
	}
	out := make(map[spiffeid.ID]time.Time, len(in))
	for _, r := range in {
		id, err := spiffeid.FromString(r.GetSpiffeId())
		_, twice := out[id]
		switch {
		case err != nil || id.String() != r.GetSpiffeId() || id.Path() == "" || twice:
			return nil, refuse(Malformed, "%s: revoked ID %q", RecordHead, r.GetSpiffeId())
		case !id.MemberOf(domain):
			return nil, refuse(WrongDomain, "%s: revoked ID %q is not of %q", RecordHead, r.GetSpiffeId(), domain.Name())
		case r.GetBegunBy() < 0 || r.GetBegunBy() > maxBegunBy:
			return nil, refuse(Malformed, "%s: revoked ID %q: %d is no time", RecordHead, r.GetSpiffeId(), r.GetBegunBy())
		}
		out[id] = time.Time{}
		if s := r.GetBegunBy(); s > 0 {
			out[id] = time.Unix(s, 0)
		}
	}
	return out, nil
}

func decodeMarks(in []*federationv1.BundleMark) (map[spiffeid.TrustDomain]uint64, error) {
	if len(in) > maxAcknowledged {
		return nil, refuse(TooLarge, "%s: %d acknowledged bundles; the limit is %d", RecordHead, len(in), maxAcknowledged)
	}
	out := make(map[spiffeid.TrustDomain]uint64, len(in))
	for _, m := range in {
		td, err := decodeDomain(RecordHead, m.GetTrustDomain())
		if err != nil {
			return nil, err
		}
		if _, twice := out[td]; twice {
			return nil, refuse(Malformed, "%s: the bundle of %q is acknowledged twice", RecordHead, td.Name())
		}
		out[td] = m.GetSequence()
	}
	return out, nil
}

func compareIDs(a, b spiffeid.ID) int { return cmp.Compare(a.String(), b.String()) }

// begunBy rounds up to a second, so that nothing that is revoked passes by a fraction of one.
func begunBy(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(1, t.Add(time.Second-1).Unix())
}

func decodeRefs(records []*federationv1.RecordRef) ([]ref, error) {
	if len(records) > maxRecords {
		return nil, refuse(TooLarge, "%s: %d records; the limit is %d", RecordHead, len(records), maxRecords)
	}
	type place struct {
		kind  RecordType
		index uint32
	}
	taken := make(map[place]bool, len(records))
	refs := make([]ref, 0, len(records))
	for _, p := range records {
		at := place{RecordType(p.GetType()), p.GetIndex()}
		var limit uint32
		switch at.kind {
		case RecordTrustBundle, RecordGatewaySet:
			limit = 1
		case RecordCatalogShard:
			limit = Shards
		default:
			return nil, refuse(Malformed, "%s: names a record of type %q", RecordHead, p.GetType())
		}
		if at.index >= limit || taken[at] || len(p.GetHash()) != sha256.Size {
			return nil, refuse(Malformed, "%s: %s %d with a hash of %d bytes", RecordHead, at.kind, at.index, len(p.GetHash()))
		}
		taken[at] = true
		refs = append(refs, ref{at.kind, at.index, Hash(p.GetHash())})
	}
	if !taken[place{RecordTrustBundle, 0}] {
		return nil, refuse(Malformed, "%s: names no trust bundle", RecordHead)
	}
	return refs, nil
}

func sealMessage(t RecordType, m proto.Message, keys ...ed25519.PrivateKey) (*record, error) {
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, refuse(Malformed, "%s: %v", t, err)
	}
	return seal(t, payload, keys...)
}

func unmarshal(r *record, want RecordType, into proto.Message, repeated int) error {
	if r.kind != want {
		return refuse(Malformed, "%s where a %s is wanted", r.kind, want)
	}
	if err := strictproto.Unmarshal(r.payload, into, strictproto.Limits{Bytes: MaxPayload, Depth: maxDepth, Repeated: repeated}); err != nil {
		return refuse(Malformed, "%s: %v", want, err)
	}
	return nil
}

func decodeDomain(t RecordType, name string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(name)
	// TrustDomainFromString also takes whole SPIFFE IDs; a record has one spelling.
	if err != nil || td.Name() != name {
		return spiffeid.TrustDomain{}, refuse(Malformed, "%s: trust domain %q", t, name)
	}
	return td, nil
}

func decodeTime(t RecordType, field string, ts *timestamppb.Timestamp) (time.Time, error) {
	if ts == nil || !ts.IsValid() || ts.GetSeconds() < 0 {
		return time.Time{}, refuse(Malformed, "%s: %s is not a time since 1970", t, field)
	}
	return ts.AsTime(), nil
}
