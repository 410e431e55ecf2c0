package enduser

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

// parseObject reads a JSON object in which no name is there twice, at any depth: readers differ in which of two they take.
func parseObject(data []byte, depth int) (map[string]access.Value, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	r := reader{json: json.NewDecoder(bytes.NewReader(data))}
	r.json.UseNumber()
	value, err := r.value(depth)
	if err != nil {
		return nil, err
	}
	if value.Kind != access.Object {
		return nil, errors.New("not a JSON object")
	}
	if _, err := r.json.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something behind the JSON object")
	}
	return value.Object, nil
}

type reader struct {
	json   *json.Decoder
	values int
}

func (r *reader) value(depth int) (access.Value, error) {
	t, err := r.json.Token()
	if err != nil {
		return access.Value{}, err
	}
	if r.values++; r.values > MaxValues {
		return access.Value{}, fmt.Errorf("more than %d values", MaxValues)
	}
	switch t := t.(type) {
	case string:
		return access.Value{Kind: access.Text, Text: t}, nil
	case json.Number:
		return access.Value{Kind: access.Literal, Text: t.String()}, nil
	case bool:
		return access.Value{Kind: access.Literal, Text: fmt.Sprint(t)}, nil
	case json.Delim:
		if depth--; depth < 0 {
			return access.Value{}, errors.New("nested too deep")
		}
		if t == '{' {
			return r.object(depth)
		}
		return r.list(depth)
	default:
		return access.Value{}, nil // null
	}
}

func (r *reader) object(depth int) (access.Value, error) {
	object := map[string]access.Value{}
	for r.json.More() {
		t, err := r.json.Token()
		if err != nil {
			return access.Value{}, err
		}
		name, ok := t.(string)
		if _, twice := object[name]; twice || !ok {
			return access.Value{}, fmt.Errorf("%q is there twice", name)
		}
		if object[name], err = r.value(depth); err != nil {
			return access.Value{}, err
		}
	}
	_, err := r.json.Token()
	return access.Value{Kind: access.Object, Object: object}, err
}

func (r *reader) list(depth int) (access.Value, error) {
	var list []access.Value
	for r.json.More() {
		v, err := r.value(depth)
		if err != nil {
			return access.Value{}, err
		}
		list = append(list, v)
	}
	_, err := r.json.Token()
	return access.Value{Kind: access.List, List: list}, err
}
