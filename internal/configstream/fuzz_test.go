package configstream

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

var fuzzHello = &configv1.Hello{Program: ProgramSidecar, Workload: "shop/checkout-0", Version: "1"}

func TestAStateFileGivesBackWhatWasWritten(t *testing.T) {
	s := service(t, "checkout.shop", 3)
	now := time.Unix(1_700_000_000, 0)
	b, err := encodeState(fuzzHello, []topology.ServiceName{s.Name}, []*configv1.Resource{EncodeService(s)}, now)
	if err != nil {
		t.Fatal(err)
	}
	k, err := decodeState(b, fuzzHello)
	if err != nil {
		t.Fatal(err)
	}
	if len(k.services) != 1 || k.services[0] != s.Name || !k.saved.Equal(now) || !k.sameVersion {
		t.Errorf("got %+v", k)
	}
	if len(k.resources) != 1 || !proto.Equal(k.resources[0], EncodeService(s)) {
		t.Errorf("got %v", k.resources)
	}
	for i := range b { // every byte counts
		changed := append([]byte(nil), b...)
		changed[i] ^= 0x10
		if _, err := decodeState(changed, fuzzHello); err == nil {
			t.Errorf("byte %d was changed, and no error", i)
		}
	}
}

// FuzzState feeds the state file's decoder, checksum and all, and one whose checksum is right.
func FuzzState(f *testing.F) {
	s := service(f, "checkout.shop", 3)
	b, err := encodeState(fuzzHello, []topology.ServiceName{s.Name}, []*configv1.Resource{EncodeService(s)}, time.Unix(1_700_000_000, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[stateHeader:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := decodeState(b, fuzzHello); err == nil {
			restoreAll(t, k)
		}
		if k, err := decodeState(sealState(b), fuzzHello); err == nil {
			restoreAll(t, k)
		}
	})
}

// restoreAll does what a client does with a state file that was read.
func restoreAll(t *testing.T, k *kept) {
	t.Helper()
	store := newStore()
	if _, err := store.apply(stage{upsert: k.resources}); err != nil {
		return
	}
	if _, err := encodeState(k.hello, k.services, resourcesOf(store.held), k.saved); err != nil {
		t.Errorf("what was read can't be written: %v", err)
	}
}

// FuzzResponse feeds a client two messages of control: what it refuses must leave it as it was.
func FuzzResponse(f *testing.F) {
	add := func(m *configv1.Response) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(&configv1.Response{Revision: 1, Upsert: []*configv1.Resource{EncodeService(service(f, "a.b", 1))}, Complete: true})
	add(&configv1.Response{Remove: []string{"service/held.shop"}, Absent: []string{"held.shop"}, Complete: true})
	add(&configv1.Response{Upsert: []*configv1.Resource{{Key: "service/a.b"}}, Absent: []string{""}})
	held := EncodeService(service(f, "held.shop", 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m configv1.Response
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		store := newStore()
		before, err := store.apply(stage{upsert: []*configv1.Resource{held}})
		if err != nil {
			t.Fatal(err)
		}
		var cut stage
		if cut.add(&m) != nil {
			return
		}
		after, err := store.apply(cut)
		if err != nil && (len(store.held) != 1 || store.current.snapshot != before.snapshot) {
			t.Fatal("a refused cut has left something")
		}
		if err == nil && after.snapshot == nil {
			t.Fatal("no snapshot")
		}
		size := 0
		for _, h := range store.held {
			size += h.size
		}
		if size != store.bytes {
			t.Fatalf("%d bytes held, counted as %d", size, store.bytes)
		}
	})
}

// FuzzRequest feeds a server what a client may say.
func FuzzRequest(f *testing.F) {
	add := func(m *configv1.Request) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	h := proto.CloneOf(fuzzHello)
	h.Have, h.Services = []*configv1.Have{{Key: "service/a.b", Version: make([]byte, versionSize)}}, []string{"a.b"}
	add(&configv1.Request{Message: &configv1.Request_Hello{Hello: h}})
	add(&configv1.Request{Message: &configv1.Request_Subscribe{Subscribe: &configv1.Subscribe{Add: []string{"a.b"}, Remove: []string{"c.d"}}}})
	w := NewWorld([]*configv1.Resource{EncodeService(service(f, "a.b", 1))})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r configv1.Request
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		hello := r.GetHello()
		if hello == nil {
			hello = fuzzHello
		}
		receiver, err := ReceiverOf(hello)
		if err != nil {
			return
		}
		v, err := newView(hello, receiver, everything)
		if err != nil {
			return
		}
		v.difference(w)
		if v.subscribe(r.GetSubscribe().GetAdd(), r.GetSubscribe().GetRemove()) != nil {
			return
		}
		v.difference(w)
		if c := v.difference(w); c.changed {
			t.Fatalf("told twice: %+v", c)
		}
	})
}
