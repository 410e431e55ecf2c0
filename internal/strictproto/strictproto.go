// Package strictproto decodes protobuf that came from somebody else, and takes it only in the one form that can be read one way.
//
// Protobuf itself is lenient: it keeps unknown fields, lets the last of two values win, and merges repeated messages. Signed
// records and stream preambles must not mean different things to two readers, so this package walks the bytes by the message's
// own descriptor before proto.Unmarshal sees them, under named limits. It holds no state.
package strictproto

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits of one message. A zero field takes its default.
type Limits struct {
	Bytes    int // of the whole message; default 64 KiB
	Depth    int // of nested messages; default 16
	Repeated int // elements of one repeated field or map; default 4096
}

const (
	defaultBytes    = 64 << 10
	defaultDepth    = 16
	defaultRepeated = 4096
)

// Error says what is wrong, and where.
type Error struct {
	Path   string // of the field, e.g. "records.hash"
	Reason string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return "strictproto: " + e.Reason
	}
	return "strictproto: " + e.Path + ": " + e.Reason
}

// Unmarshal decodes b into m. It refuses, with an *Error: more bytes, depth or elements than l allows; unknown fields; a second
// value of a singular field, of a oneof or of a map's key; groups; a wrong wire type; strings that are not UTF-8. m is untouched on such an error.
func Unmarshal(b []byte, m proto.Message, l Limits) error {
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	if l.Depth == 0 {
		l.Depth = defaultDepth
	}
	if l.Repeated == 0 {
		l.Repeated = defaultRepeated
	}
	if len(b) > l.Bytes {
		return &Error{Reason: fmt.Sprintf("%d bytes, more than the limit of %d", len(b), l.Bytes)}
	}
	if err := check(b, m.ProtoReflect().Descriptor(), l, 1, ""); err != nil {
		return err
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("strictproto: %w", err)
	}
	return nil
}

// check walks one message of type d at the given depth.
func check(b []byte, d protoreflect.MessageDescriptor, l Limits, depth int, path string) error {
	if depth > l.Depth {
		return &Error{path, fmt.Sprintf("nested deeper than %d", l.Depth)}
	}
	seen := make(map[protoreflect.FieldNumber]int)
	oneofs := make(map[protoreflect.Name]bool)
	keys := make(map[string]bool) // of map fields, by field and raw key
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return &Error{path, protowire.ParseError(n).Error()}
		}
		b = b[n:]
		field := d.Fields().ByNumber(number)
		if field == nil {
			return &Error{path, fmt.Sprintf("unknown field %d", number)}
		}
		at := join(path, field.Name())
		n = protowire.ConsumeFieldValue(number, wire, b)
		if n < 0 {
			return &Error{at, protowire.ParseError(n).Error()}
		}
		elements, err := checkValue(b[:n], field, wire, l, depth, at)
		if err != nil {
			return err
		}
		if field.IsMap() {
			key := at + "\x00" + string(mapKey(b[:n]))
			if keys[key] {
				return &Error{at, "a key given twice"}
			}
			keys[key] = true
		}
		b = b[n:]

		seen[number] += elements
		switch {
		case field.Cardinality() == protoreflect.Repeated:
			if seen[number] > l.Repeated {
				return &Error{at, fmt.Sprintf("more than %d elements", l.Repeated)}
			}
		case seen[number] > 1:
			return &Error{at, "given twice"}
		}
		if o := field.ContainingOneof(); o != nil && !o.IsSynthetic() {
			if oneofs[o.Name()] {
				return &Error{join(path, o.Name()), "more than one of its fields"}
			}
			oneofs[o.Name()] = true
		}
	}
	return nil
}

// mapKey returns the raw key of a map entry that was checked already; nil is the default key.
func mapKey(v []byte) []byte {
	entry, _ := protowire.ConsumeBytes(v)
	for len(entry) > 0 {
		number, wire, n := protowire.ConsumeTag(entry)
		entry = entry[n:]
		n = protowire.ConsumeFieldValue(number, wire, entry)
		if number == 1 {
			return entry[:n]
		}
		entry = entry[n:]
	}
	return nil
}

func join(path string, name protoreflect.Name) string {
	if path == "" {
		return string(name)
	}
	return path + "." + string(name)
}

// checkValue checks one field's value and returns how many elements it holds: one, or those of a packed list.
func checkValue(v []byte, field protoreflect.FieldDescriptor, wire protowire.Type, l Limits, depth int, at string) (int, error) {
	want := wireType(field.Kind())
	if wire == protowire.BytesType && want != protowire.BytesType && field.IsList() {
		return checkPacked(v, want, at)
	}
	if wire != want {
		return 0, &Error{at, fmt.Sprintf("wire type %d, want %d", wire, want)}
	}
	if wire != protowire.BytesType {
		return 1, nil
	}
	content, n := protowire.ConsumeBytes(v)
	if n < 0 {
		return 0, &Error{at, protowire.ParseError(n).Error()}
	}
	switch field.Kind() {
	case protoreflect.StringKind:
		if !utf8.Valid(content) {
			return 0, &Error{at, "not UTF-8"}
		}
	case protoreflect.MessageKind:
		return 1, check(content, field.Message(), l, depth+1, at)
	default:
	}
	return 1, nil
}

func checkPacked(v []byte, element protowire.Type, at string) (int, error) {
	content, n := protowire.ConsumeBytes(v)
	if n < 0 {
		return 0, &Error{at, protowire.ParseError(n).Error()}
	}
	count := 0
	for len(content) > 0 {
		n := protowire.ConsumeFieldValue(1, element, content)
		if n < 0 {
			return 0, &Error{at, protowire.ParseError(n).Error()}
		}
		content = content[n:]
		count++
	}
	return count, nil
}

// errGroup keeps the switch below total: groups are not part of proto3.
var errGroup = errors.New("strictproto: group field in a descriptor")

func wireType(k protoreflect.Kind) protowire.Type {
	switch k {
	case protoreflect.BoolKind, protoreflect.EnumKind,
		protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Uint32Kind,
		protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Uint64Kind:
		return protowire.VarintType
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return protowire.Fixed64Type
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.MessageKind:
		return protowire.BytesType
	case protoreflect.GroupKind:
		panic(errGroup) // our own .proto files are proto3
	}
	panic(errGroup)
}
