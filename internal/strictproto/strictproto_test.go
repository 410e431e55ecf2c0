package strictproto_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/strictproto"
)

func marshal(tb testing.TB, m proto.Message) []byte {
	tb.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestTakesWhatMarshalMakes(t *testing.T) {
	in := &federationv1.CatalogShard{TrustDomain: "us.test", Index: 3, Services: []*federationv1.ExportedService{{
		Namespace: "shop", Name: "checkout", Labels: map[string]string{"a": "b", "c": "d"},
		Ports: []*federationv1.ServicePort{{Name: "http", Port: 80}},
	}}}
	var out federationv1.CatalogShard
	if err := strictproto.Unmarshal(marshal(t, in), &out, strictproto.Limits{}); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(in, &out) {
		t.Errorf("got %v", &out)
	}
}

func TestRefuses(t *testing.T) {
	preamble := marshal(t, &streamv1.Preamble{Cluster: "us", Port: 80})
	probe := marshal(t, &streamv1.LinkMessage{Message: &streamv1.LinkMessage_Probe{Probe: &streamv1.Probe{Seq: 1}}})
	draining := marshal(t, &streamv1.LinkMessage{Message: &streamv1.LinkMessage_Draining{Draining: &streamv1.Draining{}}})
	labels := marshal(t, &federationv1.ExportedService{Labels: map[string]string{"a": "b"}})
	many := &federationv1.Head{RevokedKeys: make([][]byte, 5)}
	for _, c := range []struct {
		name   string
		bytes  []byte
		into   proto.Message
		limits strictproto.Limits
		want   string
	}{
		{"too long", make([]byte, 65<<10), new(streamv1.Preamble), strictproto.Limits{}, "more than the limit"},
		{"unknown field", protowire.AppendVarint(protowire.AppendTag(preamble, 99, protowire.VarintType), 1), new(streamv1.Preamble), strictproto.Limits{}, "unknown field 99"},
		{"singular twice", append(preamble, preamble...), new(streamv1.Preamble), strictproto.Limits{}, "cluster: given twice"},
		{"oneof twice", append(probe, draining...), new(streamv1.LinkMessage), strictproto.Limits{}, "message: more than one of its fields"},
		{"wrong wire type", protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1), new(streamv1.Preamble), strictproto.Limits{}, "cluster: wire type 0, want 2"},
		{"map key twice", append(labels, labels...), new(federationv1.ExportedService), strictproto.Limits{}, "labels: a key given twice"},
		{"group", protowire.AppendTag(nil, 1, protowire.StartGroupType), new(streamv1.Preamble), strictproto.Limits{}, "cluster"},
		{"not UTF-8", protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "\xff"), new(streamv1.Preamble), strictproto.Limits{}, "cluster: not UTF-8"},
		{"cut short", preamble[:len(preamble)-1], new(streamv1.Preamble), strictproto.Limits{}, "unexpected EOF"},
		{"too deep", probe, new(streamv1.LinkMessage), strictproto.Limits{Depth: 1}, "deeper than 1"},
		{"too many", marshal(t, many), new(federationv1.Head), strictproto.Limits{Repeated: 4}, "more than 4 elements"},
		{"unknown field, nested", marshal(t, &streamv1.LinkMessage{Message: &streamv1.LinkMessage_Probe{Probe: withUnknown()}}), new(streamv1.LinkMessage), strictproto.Limits{}, "probe: unknown field 7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := strictproto.Unmarshal(c.bytes, c.into, c.limits)
			var strict *strictproto.Error
			if !errors.As(err, &strict) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an Error with %q", err, c.want)
			}
		})
	}
}

func withUnknown() *streamv1.Probe {
	p := &streamv1.Probe{Seq: 1}
	p.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 7, protowire.VarintType), 1))
	return p
}

func TestPackedElementsCount(t *testing.T) {
	packed := protowire.AppendBytes(protowire.AppendTag(nil, 8, protowire.BytesType), []byte{1, 2, 3})

	if err := strictproto.Unmarshal(packed, new(configv1.Endpoint), strictproto.Limits{Repeated: 2}); err == nil {
		t.Error("three packed elements passed a limit of two")
	}
	if err := strictproto.Unmarshal(packed, new(configv1.Endpoint), strictproto.Limits{Repeated: 3}); err != nil {
		t.Error(err)
	}
}

// FuzzUnmarshal: what strictproto takes, a second encoding of it means the same, and holds no unknown field.
func FuzzUnmarshal(f *testing.F) {
	f.Add(marshal(f, &federationv1.Head{TrustDomain: "us.test", Epoch: 1, Seq: 2, Records: []*federationv1.RecordRef{{Type: "head.v1", Hash: []byte("h")}}}))
	f.Add([]byte("\x0a\x03abc\x0a\x03abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m federationv1.Head
		if strictproto.Unmarshal(b, &m, strictproto.Limits{}) != nil {
			return
		}
		if len(m.ProtoReflect().GetUnknown()) > 0 {
			t.Fatal("unknown fields passed")
		}
		var again federationv1.Head
		if err := strictproto.Unmarshal(marshal(t, &m), &again, strictproto.Limits{}); err != nil {
			t.Fatalf("own encoding refused: %v", err)
		}
		if !proto.Equal(&m, &again) {
			t.Fatal("second reading differs")
		}
	})
}
