package configstream

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// A state file is: stateMagic; the format, a big-endian uint32; the SHA-256 of the rest; the time of writing, a big-endian
// uint64 of Unix seconds; the length of a Hello, a big-endian uint32; that Hello (who wrote it, and its subscriptions); and a
// Response with every resource. Versions of the program share the format until its number changes.
const (
	stateMagic    = "isthmus-state\n"
	stateFormat   = 1
	stateHeader   = len(stateMagic) + 4 + sha256.Size
	maxStateBytes = maxHeldBytes + maxHeldBytes/4
)

// kept is what a state file holds.
type kept struct {
	hello       *configv1.Hello
	services    []topology.ServiceName
	resources   []*configv1.Resource
	saved       time.Time
	sameVersion bool // the program that wrote it is the one that reads it
}

func encodeState(hello *configv1.Hello, services []topology.ServiceName, resources []*configv1.Resource, now time.Time) ([]byte, error) {
	h := &configv1.Hello{Program: hello.GetProgram(), Version: hello.GetVersion(), Workload: hello.GetWorkload(), Services: texts(services)}
	if g := hello.GetGateway(); g != nil {
		h.Gateway = &configv1.Gateway{Id: g.GetId()}
	}
	head, err := proto.Marshal(h)
	if err != nil {
		return nil, err
	}
	var body []byte
	body = binary.BigEndian.AppendUint64(body, uint64(max(0, now.Unix())))
	body = binary.BigEndian.AppendUint32(body, uint32(len(head))) //nolint:gosec // bounded by MaxSubscriptions
	body = append(body, head...)
	body, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(body, &configv1.Response{Upsert: resources, Complete: true})
	if err != nil {
		return nil, err
	}
	if err := atMost("bytes of state", len(body), maxStateBytes-stateHeader); err != nil {
		return nil, err
	}
	return sealState(body), nil
}

// sealState puts the header before a body.
func sealState(body []byte) []byte {
	sum := sha256.Sum256(body)
	out := make([]byte, 0, stateHeader+len(body))
	out = append(out, stateMagic...)
	out = binary.BigEndian.AppendUint32(out, stateFormat)
	out = append(out, sum[:]...)
	return append(out, body...)
}

func decodeState(b []byte, reader *configv1.Hello) (*kept, error) {
	if len(b) < stateHeader+12 || len(b) > maxStateBytes || string(b[:len(stateMagic)]) != stateMagic {
		return nil, errors.New("not a state file")
	}
	if f := binary.BigEndian.Uint32(b[len(stateMagic):]); f != stateFormat {
		return nil, fmt.Errorf("format %d: want %d", f, stateFormat)
	}
	body := b[stateHeader:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[stateHeader-sha256.Size:stateHeader]) {
		return nil, errors.New("the checksum is wrong")
	}
	saved := binary.BigEndian.Uint64(body)
	n := int64(binary.BigEndian.Uint32(body[8:]))
	body = body[12:]
	if n > int64(len(body)) || saved > 1<<40 {
		return nil, errors.New("not a state file")
	}
	k := &kept{hello: new(configv1.Hello), saved: time.Unix(int64(saved), 0)}
	if err := proto.Unmarshal(body[:n], k.hello); err != nil {
		return nil, err
	}
	var r configv1.Response
	if err := proto.Unmarshal(body[n:], &r); err != nil {
		return nil, err
	}
	k.resources = r.GetUpsert()
	if err := k.check(reader); err != nil {
		return nil, err
	}
	k.sameVersion = k.hello.GetVersion() == reader.GetVersion()
	return k, nil
}

func (k *kept) check(reader *configv1.Hello) error {
	wrote, err := ReceiverOf(k.hello)
	if err != nil {
		return err
	}
	if reads, err := ReceiverOf(reader); err != nil || wrote != reads {
		return fmt.Errorf("it is of %s", wrote)
	}
	if err := atMost("services", len(k.hello.GetServices()), MaxSubscriptions); err != nil {
		return err
	}
	if err := atMost("resources", len(k.resources), maxHeld); err != nil {
		return err
	}
	for _, s := range k.hello.GetServices() {
		name, err := topology.ParseServiceName(s)
		if err != nil {
			return err
		}
		k.services = append(k.services, name)
	}
	return nil
}
