package strictyaml

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
)

var (
	reference = regexp.MustCompile(`\$\{([^}\n]*)\}?`)
	name      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// plain is a value that YAML reads as the characters it is made of, wherever it stands in a scalar.
	plain = regexp.MustCompile(`^[A-Za-z0-9._:/@+-]+$`)
)

// Expand puts the values of variables in the place of ${NAME}: one file then serves all copies of a program, each of which knows its own
// name and address from its environment. An IPv6 address before a port gets its brackets. What isn't set, and a value that would change how
// the file is read, is an *Error with its line.
func Expand(file string, data []byte, lookup func(name string) (string, bool)) ([]byte, error) {
	var wrong *Error
	var out []byte
	end := 0
	for _, m := range reference.FindAllSubmatchIndex(data, -1) {
		variable := string(data[m[2]:m[3]])
		value, ok := lookup(variable)
		switch closed := data[m[1]-1] == '}'; {
		case !closed || !name.MatchString(variable):
			wrong = &Error{Reason: fmt.Sprintf("%q: want ${NAME}, the name of an environment variable", data[m[0]:m[1]])}
		case !ok:
			wrong = &Error{Reason: fmt.Sprintf("%s: the environment variable is not set", data[m[0]:m[1]])}
		case !plain.MatchString(value):
			wrong = &Error{Reason: fmt.Sprintf("%s: the environment variable is %q; want letters, digits and any of . _ : / @ + -", data[m[0]:m[1]], value)}
		}
		if wrong != nil {
			wrong.File, wrong.Line = file, 1+bytes.Count(data[:m[0]], []byte("\n"))
			return nil, wrong
		}
		if ip, err := netip.ParseAddr(value); err == nil && ip.Is6() && m[1] < len(data) && data[m[1]] == ':' {
			value = "[" + value + "]"
		}
		out = append(append(out, data[end:m[0]]...), value...)
		end = m[1]
	}
	return append(out, data[end:]...), nil
}
