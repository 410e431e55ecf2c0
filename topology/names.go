// Package topology is what exists where, and which copy of a service a call goes to.
//
// It is pure: values in, values out; no clock, no I/O, no goroutine. Everybody above it (control, gateway,
// sidecar, federation) uses its names and its immutable Snapshot; the sidecar asks Choose for each plan, and
// Explain is the same decision told in words. All types are safe for concurrent reading.
package topology

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// ErrName is what every parse error of a name is (errors.Is).
var ErrName = errors.New("invalid name")

// ClusterName names a cluster within the clusterset: an RFC 1123 label (KEP-2149). The zero value is no cluster.
type ClusterName struct{ s string }

// ParseClusterName parses an RFC 1123 label of at most 63 bytes.
func ParseClusterName(s string) (ClusterName, error) {
	if err := checkLabel(s); err != nil {
		return ClusterName{}, fmt.Errorf("cluster name %q: %w", s, err)
	}
	return ClusterName{s}, nil
}

// String returns the name; empty for the zero value.
func (c ClusterName) String() string { return c.s }

// IsZero reports whether c names no cluster.
func (c ClusterName) IsZero() bool { return c.s == "" }

// Compare orders names as strings.
func (c ClusterName) Compare(o ClusterName) int { return strings.Compare(c.s, o.s) }

// MarshalText returns the name.
func (c ClusterName) MarshalText() ([]byte, error) { return []byte(c.s), nil }

// UnmarshalText parses as ParseClusterName does.
func (c *ClusterName) UnmarshalText(b []byte) (err error) {
	*c, err = ParseClusterName(string(b))
	return err
}

// ServiceName names a service: namespace and name, both RFC 1123 labels. The zero value is no service.
type ServiceName struct{ namespace, name string }

// NewServiceName checks both labels.
func NewServiceName(namespace, name string) (ServiceName, error) {
	if err := checkLabel(namespace); err != nil {
		return ServiceName{}, fmt.Errorf("namespace %q: %w", namespace, err)
	}
	if err := checkLabel(name); err != nil {
		return ServiceName{}, fmt.Errorf("service name %q: %w", name, err)
	}
	return ServiceName{namespace, name}, nil
}

// ParseServiceName parses "name.namespace", the order of DNS.
func ParseServiceName(s string) (ServiceName, error) {
	name, namespace, ok := strings.Cut(s, ".")
	if !ok {
		return ServiceName{}, fmt.Errorf("service %q: want name.namespace: %w", s, ErrName)
	}
	return NewServiceName(namespace, name)
}

// Name returns the name without the namespace.
func (s ServiceName) Name() string { return s.name }

// Namespace returns the namespace.
func (s ServiceName) Namespace() string { return s.namespace }

// IsZero reports whether s names no service.
func (s ServiceName) IsZero() bool { return s == ServiceName{} }

// String returns "name.namespace", as ParseServiceName takes it.
func (s ServiceName) String() string {
	if s.IsZero() {
		return ""
	}
	return s.name + "." + s.namespace
}

// Compare orders by namespace, then name.
func (s ServiceName) Compare(o ServiceName) int {
	return cmp.Or(strings.Compare(s.namespace, o.namespace), strings.Compare(s.name, o.name))
}

// MarshalText returns "name.namespace".
func (s ServiceName) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText parses as ParseServiceName does.
func (s *ServiceName) UnmarshalText(b []byte) (err error) {
	*s, err = ParseServiceName(string(b))
	return err
}

const maxLabel = 63 // RFC 1035 section 2.3.4

func checkLabel(s string) error {
	if s == "" || len(s) > maxLabel {
		return fmt.Errorf("want 1 to %d characters: %w", maxLabel, ErrName)
	}
	for i := range len(s) {
		c := s[i]
		alphanumeric := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alphanumeric && (c != '-' || i == 0 || i == len(s)-1) {
			return fmt.Errorf("want lower-case letters, digits and inner hyphens (RFC 1123): %w", ErrName)
		}
	}
	return nil
}
