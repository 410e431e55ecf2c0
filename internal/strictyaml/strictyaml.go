// Package strictyaml decodes YAML that people wrote, and says of everything that it does not take in which line it stands.
//
// It reads the YAML that Kubernetes reads (sigs.k8s.io/yaml: YAML → JSON → JSON tags), refuses unknown and duplicate keys, and finds
// the line of a problem in a second, positional reading of the same bytes. It holds no state.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// MaxFile is the size limit of one file, in bytes.
const MaxFile = 1 << 20

// maxDepth bounds the nesting of mappings and lists; nothing we read is deeper than 12.
const maxDepth = 64

// Error is one thing wrong, and where. Several are joined (errors.Join).
type Error struct {
	File   string
	Line   int    // 1-based; 0 = unknown
	Field  string // e.g. "spec.ports[0].port"; may be empty
	Reason string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(e.Line))
	}
	b.WriteString(": ")
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteString(": ")
	}
	b.WriteString(e.Reason)
	return b.String()
}

// Document is one document of a file.
type Document struct {
	File string
	// StartLine is the 1-based line in the file of the document's first line of content.
	StartLine int
	Raw       []byte

	offset int         // lines of the file before Raw
	root   yamlv3.Node // positional reading of Raw
}

// Decode reads a file that holds exactly one document.
func Decode(file string, data []byte, into any) error {
	docs, err := Documents(file, data)
	if err != nil {
		return err
	}
	switch len(docs) {
	case 0:
		return &Error{File: file, Reason: "empty"}
	case 1:
		return docs[0].Decode(into)
	default:
		return &Error{File: file, Line: docs[1].StartLine, Reason: "a second document; want one"}
	}
}

var separator = regexp.MustCompile(`(?m)^---([ \t].*)?\r?$`)

// Documents splits a file at its "---" lines. Documents without content are left out.
func Documents(file string, data []byte) ([]Document, error) {
	if len(data) > MaxFile {
		return nil, &Error{File: file, Reason: fmt.Sprintf("%d bytes, more than the limit of %d", len(data), MaxFile)}
	}
	var (
		docs []Document
		errs []error
	)
	add := func(from, to int) {
		d := Document{File: file, Raw: data[from:to], offset: bytes.Count(data[:from], []byte("\n"))}
		err := d.parse()
		switch {
		case err != nil:
			errs = append(errs, err)
		case d.root.Kind != 0:
			d.StartLine = d.root.Line + d.offset
			if len(d.root.Content) > 0 {
				d.StartLine = d.root.Content[0].Line + d.offset
			}
			docs = append(docs, d)
		}
	}
	from := 0
	for _, at := range separator.FindAllIndex(data, -1) {
		add(from, at[0])
		from = at[0] + len("---")
	}
	add(from, len(data))
	return docs, errors.Join(errs...)
}

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\n  )?line (\d+): `)

func (d *Document) parse() error {
	err := yamlv3.Unmarshal(d.Raw, &d.root)
	if err != nil {
		e := &Error{File: d.File, Reason: strings.TrimPrefix(err.Error(), "yaml: ")}
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			line, _ := strconv.Atoi(m[1]) // the pattern takes digits only
			e.Line, e.Reason = line+d.offset, err.Error()[len(m[0]):]
		}
		return e
	}
	return d.bounded(&d.root, 0)
}

// bounded refuses aliases (nobody writes them here, and they are how small files become large) and deep nesting.
func (d *Document) bounded(n *yamlv3.Node, depth int) error {
	if n.Kind == yamlv3.AliasNode {
		return &Error{File: d.File, Line: n.Line + d.offset, Reason: "aliases (*name) are not taken"}
	}
	if depth > maxDepth {
		return &Error{File: d.File, Line: n.Line + d.offset, Reason: fmt.Sprintf("nested deeper than %d", maxDepth)}
	}
	for _, c := range n.Content {
		if err := d.bounded(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// Decode reads the document into a value by its json tags. The error is one *Error, or several joined.
func (d *Document) Decode(into any) error {
	asJSON, err := yaml.YAMLToJSONStrict(d.Raw)
	if err != nil {
		return d.fromYAML(err)
	}
	strict, err := kjson.UnmarshalStrict(asJSON, into)
	if err != nil {
		return d.fromJSON(err)
	}
	errs := make([]error, 0, len(strict))
	for _, s := range strict {
		errs = append(errs, d.fromStrict(s))
	}
	return errors.Join(errs...)
}

// Errorf returns an *Error about a field of this document.
func (d *Document) Errorf(field, format string, args ...any) *Error {
	return &Error{File: d.File, Line: d.Line(field), Field: field, Reason: fmt.Sprintf(format, args...)}
}

var (
	anyLine    = regexp.MustCompile(`line (\d+): `)
	quotedPath = regexp.MustCompile(`^(unknown|duplicate) field "(.*)"$`)
	goField    = regexp.MustCompile(`^json: cannot unmarshal (\S+) into Go struct field [^.\s]*\.(\S+) of type (.+)$`)
)

func (d *Document) fromYAML(err error) error {
	e := &Error{File: d.File, Line: d.StartLine, Reason: err.Error()}
	if m := anyLine.FindStringSubmatchIndex(e.Reason); m != nil {
		line, _ := strconv.Atoi(e.Reason[m[2]:m[3]]) // the pattern takes digits only
		e.Line, e.Reason = line+d.offset, e.Reason[m[1]:]
	}
	return e
}

func (d *Document) fromStrict(err error) error {
	if m := quotedPath.FindStringSubmatch(err.Error()); m != nil {
		return d.Errorf(m[2], "%s field", m[1])
	}
	return &Error{File: d.File, Line: d.StartLine, Reason: err.Error()}
}

func (d *Document) fromJSON(err error) error {
	if m := goField.FindStringSubmatch(err.Error()); m != nil {
		return d.Errorf(m[2], "is a %s, want %s", m[1], words(m[3]))
	}
	return &Error{File: d.File, Line: d.StartLine, Reason: strings.TrimPrefix(err.Error(), "json: ")}
}

// words turns a Go type into what the writer of a file knows.
func words(goType string) string {
	switch {
	case strings.HasPrefix(goType, "int"), strings.HasPrefix(goType, "uint"):
		return "a whole number"
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case strings.HasPrefix(goType, "map["):
		return "a mapping"
	case goType == "bool":
		return "true or false"
	case goType == "strictyaml.Address":
		return "host:port"
	case goType == "string":
		return "a string"
	default:
		return "a mapping (" + goType + ")"
	}
}
