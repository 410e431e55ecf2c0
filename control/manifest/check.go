package manifest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
	"github.com/isthmus-mesh/isthmus/topology"
)

// defaultNamespace is where an object without a namespace lives, as kubectl has it.
const defaultNamespace = "default"

// checker collects what is wrong with one object.
type checker struct {
	doc    *strictyaml.Document // nil for an object that comes from no file
	header header
	errs   []error
}

// addf notes a problem with a field.
func (c *checker) addf(field, format string, args ...any) {
	if c.doc == nil {
		c.errs = append(c.errs, &strictyaml.Error{Field: field, Reason: fmt.Sprintf(format, args...)})
		return
	}
	c.errs = append(c.errs, c.doc.Errorf(field, format, args...))
}

// source is where the object stands.
func (c *checker) source() control.Source {
	if c.doc == nil {
		return control.Source{}
	}
	return control.Source{File: c.doc.File, Line: c.doc.StartLine}
}

// object names the object for people, before it was checked.
func (c *checker) object() string { return c.header.object() }

func (h header) object() string {
	name := h.name
	if name == "" {
		name = "(no name)"
	}
	if h.kind == "ClusterPeer" || h.kind == "FederatedTrustDomain" { // the only kinds here without a namespace
		return h.kind + " " + name
	}
	namespace := h.namespace
	if namespace == "" {
		namespace = defaultNamespace
	}
	return h.kind + " " + namespace + "/" + name
}

// meta checks an object's metadata.
func (c *checker) meta(in *metav1.ObjectMeta, namespaced bool, checkName func(string) []string) control.Meta {
	m := control.Meta{
		Source: c.source(),
		Kind:   c.header.kind, Namespace: in.Namespace, Name: in.Name, Created: in.CreationTimestamp.UTC(),
	}
	if in.CreationTimestamp.IsZero() {
		m.Created = in.CreationTimestamp.Time
	}
	if in.Name == "" {
		c.addf("metadata.name", "is missing")
	} else {
		c.all("metadata.name", strconv.Quote(in.Name), checkName(in.Name))
	}
	switch {
	case namespaced && in.Namespace == "":
		m.Namespace = defaultNamespace
	case namespaced:
		c.all("metadata.namespace", strconv.Quote(in.Namespace), validation.IsDNS1123Label(in.Namespace))
	case in.Namespace != "":
		c.addf("metadata.namespace", "a %s has no namespace", m.Kind)
	}
	c.labels("metadata.labels", in.Labels)
	for k := range in.Annotations {
		c.all("metadata.annotations."+k, "key "+strconv.Quote(k), validation.IsQualifiedName(strings.ToLower(k)))
	}
	return m
}

// all notes each complaint about a value.
func (c *checker) all(field, value string, complaints []string) {
	for _, s := range complaints {
		s, _, _ = strings.Cut(s, " (e.g.") // an example and a regular expression follow
		c.addf(field, "%s: %s", value, s)
	}
}

// labels checks a map of labels.
func (c *checker) labels(field string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		c.all(field+"."+k, "key "+strconv.Quote(k), validation.IsQualifiedName(k))
		c.all(field+"."+k, strconv.Quote(labels[k]), validation.IsValidLabelValue(labels[k]))
	}
}

// port checks a port number.
func (c *checker) port(field string, n int32) uint16 {
	if n < 1 || n > 65535 {
		c.addf(field, "%d is no port: want 1 to 65535", n)
		return 0
	}
	return uint16(n)
}

// portName checks the name of a port: an RFC 1123 label; empty is fine.
func (c *checker) portName(field, name string) {
	if name != "" {
		c.all(field, strconv.Quote(name), validation.IsDNS1123Label(name))
	}
}

// transport checks a port's protocol; empty means TCP.
func (c *checker) transport(field, protocol string) federation.Transport {
	switch t := federation.Transport(protocol); t {
	case "", federation.TCP:
		return federation.TCP
	case federation.UDP, federation.SCTP:
		return t
	default:
		c.addf(field, "%q is not known: want TCP, UDP or SCTP", protocol)
		return federation.TCP
	}
}

// ip checks a unicast address. Loopback is fine: a cluster of plain processes may live there.
func (c *checker) ip(field, s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		c.addf(field, "%q is no IP address", s)
	case a.Zone() != "":
		c.addf(field, "%q: an address with a zone has no meaning on another machine", s)
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		c.addf(field, "%q can't be called: want a unicast address", s)
	}
	return a.Unmap()
}

// service names a service in the object's namespace.
func (c *checker) service(field, namespace, name string) topology.ServiceName {
	s, err := topology.NewServiceName(namespace, name)
	if err != nil {
		c.addf(field, "%v", err)
	}
	return s
}

// unique notes a value that stands twice in a list.
func unique[T comparable](c *checker, seen map[T]int, key T, field string, index int, what string) {
	if at, twice := seen[key]; twice {
		c.addf(fmt.Sprintf("%s[%d]", field, index), "%s is that of %s[%d] too", what, field, at)
		return
	}
	seen[key] = index
}
