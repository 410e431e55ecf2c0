package federation

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
)

// FuzzEnvelope: what is opened is within the limits, has one hash for its type and payload, and a key verifies only what it signed.
func FuzzEnvelope(f *testing.F) {
	a := newAuthor(f, "us")
	d := a.tell(1, epochStart, nil)
	for _, r := range append(d.all(), a.memberRoot(nil)) {
		f.Add(r.raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := open(raw)
		if err != nil {
			reasonOf(t, err)
			return
		}
		if len(r.payload) > MaxPayload || len(r.signatures) > maxSignatures {
			t.Fatalf("%d bytes, %d signatures", len(r.payload), len(r.signatures))
		}
		again, err := seal(r.kind, r.payload)
		if err != nil || again.hash != r.hash {
			t.Fatalf("sealed again it has another hash: %v", err)
		}
		if r.verify(public(a.signing)) && r.hash != d.head.hash {
			t.Fatal("the key has not signed this")
		}
	})
}

// fuzzRecord fuzzes the payload of one type of record. decode returns a message that, encoded, must decode to the same again.
func fuzzRecord(f *testing.F, t RecordType, seeds []*record, decode func(*record) (any, func() (*record, error), error)) {
	f.Helper()
	for _, r := range seeds {
		f.Add(r.payload)
	}
	f.Fuzz(func(tt *testing.T, payload []byte) {
		r, err := seal(t, payload)
		if err != nil {
			reasonOf(tt, err)
			return
		}
		value, encode, err := decode(r)
		if err != nil {
			reasonOf(tt, err)
			return
		}
		again, err := encode()
		if err != nil {
			tt.Fatalf("can't be told again: %v", err)
		}
		if again == nil {
			return
		}
		second, _, err := decode(again)
		if err != nil {
			tt.Fatalf("can't be read again: %v", err)
		}
		if diff := cmp.Diff(value, second, byValue, cmp.AllowUnexported(memberRoot{}, head{}, ref{}, anchors{})); diff != "" {
			tt.Fatalf("another when told again:\n%s", diff)
		}
	})
}

func FuzzMemberRoot(f *testing.F) {
	a := newAuthor(f, "us")
	key := newEd25519(f)
	fuzzRecord(f, RecordMemberRoot, []*record{a.memberRoot(nil)}, func(r *record) (any, func() (*record, error), error) {
		m, err := decodeMemberRoot(r)
		return m, func() (*record, error) { return m.seal(key) }, err
	})
}

func FuzzHead(f *testing.F) {
	a := newAuthor(f, "us")
	key := newEd25519(f)
	revoked := a.tell(1, epochStart, func(h *head) {
		h.revoked = [][32]byte{{1}, {2}}
		h.revokedIDs = map[spiffeid.ID]time.Time{spiffeid.RequireFromPath(a.domain, "/a"): {}, spiffeid.RequireFromPath(a.domain, "/b"): epochStart}
		h.acknowledged = map[spiffeid.TrustDomain]uint64{a.domain: 7}
	})
	fuzzRecord(f, RecordHead, []*record{revoked.head}, func(r *record) (any, func() (*record, error), error) {
		h, err := decodeHead(r)
		return h, func() (*record, error) { return h.seal(key) }, err
	})
}

func FuzzTrustBundle(f *testing.F) {
	a := newAuthor(f, "us")
	domain := spiffeid.RequireTrustDomainFromString("us.example.org")
	fuzzRecord(f, RecordTrustBundle, a.tell(1, epochStart, nil).parts[:1], func(r *record) (any, func() (*record, error), error) {
		b, err := decodeBundle(r, domain)
		if err == nil && (len(b.bundle.Authorities) == 0 || b.notAfter.IsZero()) {
			panic("a bundle without roots or end")
		}
		// Its end is the peer's word, not always that of its roots.
		return b.sequence, func() (*record, error) { return nil, nil }, err
	})
}

func FuzzGatewaySet(f *testing.F) {
	a := newAuthor(f, "us")
	domain := spiffeid.RequireTrustDomainFromString("us.example.org")
	fuzzRecord(f, RecordGatewaySet, a.tell(1, epochStart, nil).parts[1:2], func(r *record) (any, func() (*record, error), error) {
		g, pods, err := decodeGateways(r, domain)
		byID := make(map[string]Gateway, len(g)) // told again, they are in order
		for _, one := range g {
			byID[one.ID] = one
		}
		return byID, func() (*record, error) { return encodeGateways(domain, g, pods) }, err
	})
}

func FuzzCatalogShard(f *testing.F) {
	a := newAuthor(f, "us")
	domain := spiffeid.RequireTrustDomainFromString("us.example.org")
	shards, err := encodeCatalog(domain, []Export{fullExport(f, a), testExport(f, "api.shop")})
	if err != nil {
		f.Fatal(err)
	}
	shop := shardOf("shop")
	fuzzRecord(f, RecordCatalogShard, []*record{shards[shop]}, func(r *record) (any, func() (*record, error), error) {
		exports, err := decodeCatalog(r, domain, shop)
		byName := make(map[string]Export, len(exports))
		for _, e := range exports {
			e.Created = e.Created.Truncate(time.Second) // whole seconds are told
			byName[e.Name.String()] = e
		}
		return byName, func() (*record, error) {
			again, encodeErr := encodeCatalog(domain, exports)
			return again[shop], encodeErr
		}, err
	})
}

func FuzzWant(f *testing.F) {
	b, err := want{
		have: map[spiffeid.TrustDomain]mark{spiffeid.RequireTrustDomainFromString("us.example.org"): {1, 2}}, hashes: []Hash{{1}, {2}},
	}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := decodeWant(b)
		if err != nil {
			reasonOf(t, err)
			return
		}
		if len(w.have) > maxMarks || len(w.hashes) > maxWantHashes {
			t.Fatalf("%d marks, %d hashes", len(w.have), len(w.hashes))
		}
	})
}

// FuzzState: a damaged file of the member's own state is refused or harmless, and never a panic.
func FuzzState(f *testing.F) {
	a := newAuthor(f, "us")
	d := a.tell(1, epochStart, nil)
	cut := savedCut{Root: a.memberRoot(nil).raw, Head: d.head.raw}
	for _, r := range d.parts {
		cut.Parts = append(cut.Parts, r.raw)
	}
	mark := savedMark{Epoch: 1, Seq: d.seq, HeadHash: d.head.hash[:], Root: cut.Root, Head: cut.Head}
	for _, v := range []any{mark, cut} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &peer{spec: a.spec(), store: new(store), parts: make(map[Hash]*part), saved: make(map[Hash]bool)}
		var m savedMark
		if json.Unmarshal(b, &m) == nil {
			_ = p.recallMark(m)
		}
		var c savedCut
		if json.Unmarshal(b, &c) == nil {
			if cut, err := p.recallCut(c); err == nil {
				p.cut = cut
			}
		}
		p.complete()
		versionOf(t, p.view(epochStart))
	})
}

// TestPAE is the example of the DSSE specification.
func TestPAE(t *testing.T) {
	if got, want := string(pae("http://example.com/HelloWorld", []byte("hello world"))), "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestOpen(t *testing.T) {
	a := newAuthor(t, "us")
	r := a.tell(1, epochStart, nil).head
	part := a.tell(1, epochStart, nil).parts[0]
	message := func(r *record, change func(*federationv1.Envelope)) []byte {
		e := new(federationv1.Envelope)
		if err := proto.Unmarshal(r.raw, e); err != nil {
			t.Fatal(err)
		}
		change(e)
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, test := range map[string]struct {
		raw  []byte
		want Reason
	}{
		"good":            {r.raw, ""},
		"nothing":         {nil, Malformed},
		"too long":        {make([]byte, MaxMessage+1), TooLarge},
		"long payload":    {message(part, func(e *federationv1.Envelope) { e.Payload = make([]byte, MaxPayload+1) }), TooLarge},
		"longest payload": {message(part, func(e *federationv1.Envelope) { e.Payload = make([]byte, MaxPayload) }), ""},
		"unknown type":    {message(r, func(e *federationv1.Envelope) { e.Type = "head.v2" }), Malformed},
		"unknown field":   {append(bytes.Clone(r.raw), 0xf8, 0x07, 0x01), Malformed},
		"type twice":      {append(bytes.Clone(r.raw), 0x0a, 0x01, 'x'), Malformed},
		"unsigned head":   {message(r, func(e *federationv1.Envelope) { e.Signatures = nil }), Malformed},
		"signed part": {message(part, func(e *federationv1.Envelope) {
			e.Signatures = []*federationv1.Signature{{KeyId: make([]byte, 32), Signature: make([]byte, 64)}}
		}), Malformed},
		"signed twice":     {message(r, func(e *federationv1.Envelope) { e.Signatures = append(e.Signatures, e.Signatures[0]) }), Malformed},
		"signed often":     {message(r, func(e *federationv1.Envelope) { e.Signatures = make([]*federationv1.Signature, maxSignatures+1) }), Malformed},
		"short signature":  {message(r, func(e *federationv1.Envelope) { e.Signatures[0].Signature = e.Signatures[0].Signature[1:] }), Malformed},
		"short key id":     {message(r, func(e *federationv1.Envelope) { e.Signatures[0].KeyId = nil }), Malformed},
		"half an envelope": {r.raw[:len(r.raw)/2], Malformed},
	} {
		o, err := open(test.raw)
		if got := reasonOf(t, err); got != test.want {
			t.Errorf("%s: %q, want %q", what, got, test.want)
		}
		if what == "good" && (!o.verify(public(a.signing)) || o.verify(public(a.root)) || o.hash != r.hash) {
			t.Error("the signature does not fit")
		}
	}
	// A type is signed with its payload: the same bytes under another type are another record.
	o := *r
	o.kind = RecordMemberRoot
	if o.verify(public(a.signing)) {
		t.Error("a signature fits another type")
	}
}

func TestThresholds(t *testing.T) {
	at := epochStart
	for _, test := range []struct {
		age      time.Duration
		notAfter time.Duration
		want     Freshness
		next     time.Duration // from issued; 0: never
	}{
		{-time.Minute, 0, Fresh, DefaultStale},
		{0, 0, Fresh, DefaultStale},
		{DefaultStale - 1, 0, Fresh, DefaultStale},
		{DefaultStale, 0, Stale, DefaultFrozen},
		{DefaultFrozen - 1, 0, Stale, DefaultFrozen},
		{DefaultFrozen, 0, Frozen, DefaultExpired},
		{DefaultExpired - 1, 0, Frozen, DefaultExpired},
		{DefaultExpired, 0, Expired, 0},
		{time.Second, 2 * time.Second, Fresh, 2 * time.Second},
		{2 * time.Second, 2 * time.Second, Expired, 0},
		{2 * time.Hour, time.Hour, Expired, 0},
	} {
		var end time.Time
		if test.notAfter > 0 {
			end = at.Add(test.notAfter)
		}
		now := at.Add(test.age)
		if got := (Thresholds{}).At(at, end, now); got != test.want {
			t.Errorf("after %s: %s, want %s", test.age, got, test.want)
		}
		var next time.Time
		if test.next > 0 {
			next = at.Add(test.next)
		}
		if got := (Thresholds{}).next(at, end, now); !got.Equal(next) {
			t.Errorf("after %s: next at %s, want %s", test.age, got, next)
		}
	}
}
