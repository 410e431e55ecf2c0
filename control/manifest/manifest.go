// Package manifest turns manifests into control's objects, and what became of them back into the objects' status.
//
// A manifest holds objects of the kinds that Kubernetes, the Multi-Cluster Services API and Isthmus define: v1 Service,
// discovery.k8s.io/v1 EndpointSlice (KEP-752), multicluster.x-k8s.io ServiceExport (KEP-1645) and isthmus.dev/v1alpha1. Decoding is
// strict: what is not understood is a problem with a line, never silently dropped. An object that a client of Kubernetes has decoded
// already takes the same checks through Convert. The package is pure; registries use it.
package manifest

import (
	"errors"
	"fmt"

	discoveryv1 "k8s.io/api/discovery/v1"

	corev1 "k8s.io/api/core/v1"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

const (
	// maxObjects bounds the objects of one file, items of lists included.
	maxObjects = 10_000
	// maxProblems bounds what is said about one file.
	maxProblems = 50
)

// Object is one checked object. Exactly one field is set.
type Object struct {
	Service  *control.Service
	Slice    *control.EndpointSlice
	Workload *control.Workload
	Export   *control.ServiceExport
	Peer     *control.ClusterPeer
	Policy   *control.FailoverPolicy
	Domain   *control.FederatedTrustDomain
	Access   *control.AccessPolicy
	Quota    *control.QuotaPolicy
}

// Meta returns the object's metadata.
func (o Object) Meta() *control.Meta {
	switch {
	case o.Service != nil:
		return &o.Service.Meta
	case o.Slice != nil:
		return &o.Slice.Meta
	case o.Workload != nil:
		return &o.Workload.Meta
	case o.Export != nil:
		return &o.Export.Meta
	case o.Peer != nil:
		return &o.Peer.Meta
	case o.Domain != nil:
		return &o.Domain.Meta
	case o.Access != nil:
		return &o.Access.Meta
	case o.Quota != nil:
		return &o.Quota.Meta
	default:
		return &o.Policy.Meta
	}
}

// File is what a file of manifests holds.
type File struct {
	Objects []Object
	// Problems make the file as a whole unfit: its last good version should stay in force.
	Problems []control.Problem
	// Guards are the AccessPolicies of an unfit file, those that are not understood among them, as ones that refuse everything. They must
	// be in force where no good version of the file is known: what was to be guarded must not stand open for a slip of the pen.
	Guards []Object
	// Skipped are objects of kinds that control has no use for. The others of the file count.
	Skipped []control.Problem

	unread bool // of a document it isn't known what it is, or what is in it
}

// Parse reads a file: YAML or JSON, several documents, lists. It never fails as a whole: see File.
func Parse(file string, data []byte) File {
	docs, err := strictyaml.Documents(file, data)
	if err != nil {
		return File{Problems: firstOf(file, problems(file, "", err)), Guards: closedText(file, string(data), nil)}
	}
	var f File
	for i := range docs {
		f.document(&docs[i], true)
	}
	f.duplicates()
	if len(f.Problems) > 0 {
		for _, o := range f.Objects {
			if o.Access != nil {
				f.Guards = append(f.Guards, o)
			}
		}
		if f.unread {
			f.Guards = closedText(file, string(data), f.Guards)
		}
		f.Objects = nil
	}
	f.Problems, f.Skipped = firstOf(file, f.Problems), firstOf(file, f.Skipped)
	return f
}

// firstOf keeps the first problems of a file, and says how many there are more.
func firstOf(file string, problems []control.Problem) []control.Problem {
	problems = control.SortProblems(problems)
	if more := len(problems) - maxProblems; more > 0 {
		problems = append(problems[:maxProblems], control.Problem{
			Source: control.Source{File: file}, Reason: fmt.Sprintf("%d more of the kind", more),
		})
	}
	return problems
}

// header is what tells one kind from another. Everything else is decoded once the kind is known.
type header struct {
	apiVersion, kind, namespace, name string

	spec bool // it has one
}

func readHeader(d *strictyaml.Document) (header, error) {
	var all map[string]any
	if err := d.Decode(&all); err != nil {
		return header{}, err
	}
	text := func(m map[string]any, key string) string {
		s, _ := m[key].(string) // another type fails the strict decoding later
		return s
	}
	h := header{apiVersion: text(all, "apiVersion"), kind: text(all, "kind")}
	if meta, ok := all["metadata"].(map[string]any); ok {
		h.namespace, h.name = text(meta, "namespace"), text(meta, "name")
	}
	_, h.spec = all["spec"]
	switch {
	case h.apiVersion == "":
		return h, d.Errorf("apiVersion", "is missing: every object names its apiVersion and kind")
	case h.kind == "":
		return h, d.Errorf("kind", "is missing: every object names its apiVersion and kind")
	}
	return h, nil
}

func (f *File) document(d *strictyaml.Document, listAllowed bool) {
	h, err := readHeader(d)
	if err != nil {
		f.unread = true
		f.Problems = append(f.Problems, problems(d.File, "", err)...)
		return
	}
	if h.apiVersion == "v1" && h.kind == "List" {
		f.list(d, listAllowed)
		return
	}
	if len(f.Objects) >= maxObjects {
		f.Problems = append(f.Problems, problems(d.File, "", d.Errorf("", "more than %d objects in one file", maxObjects))...)
		return
	}
	decode, ok := kinds[h.apiVersion+" "+h.kind]
	if !ok {
		if why := mistaken(h); why != "" {
			f.Problems = append(f.Problems, problems(d.File, h.object(), d.Errorf("kind", "%s", why))...)
			if distance(h.kind, accessKind) <= maxTypos {
				f.Guards = append(f.Guards, closedDocument(&checker{doc: d, header: h})...)
			}
			return
		}
		f.Skipped = append(f.Skipped, problems(d.File, h.object(), d.Errorf("kind", "%s", unknownKind(h)))...)
		return
	}
	c := &checker{doc: d, header: h}
	object, err := decode(c)
	if err = errors.Join(err, errors.Join(c.errs...)); err != nil {
		f.Problems = append(f.Problems, problems(d.File, c.object(), err)...)
		if h.kind == accessKind {
			f.Guards = append(f.Guards, closedDocument(c)...)
		}
		return
	}
	f.Objects = append(f.Objects, object)
}

func (f *File) list(d *strictyaml.Document, allowed bool) {
	if !allowed {
		f.unread = true
		f.Problems = append(f.Problems, problems(d.File, "List", d.Errorf("kind", "a List inside a List"))...)
		return
	}
	var shape struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Metadata   map[string]any `json:"metadata"`
		Items      []any          `json:"items"`
	}
	if err := d.Decode(&shape); err != nil {
		f.unread = true
		f.Problems = append(f.Problems, problems(d.File, "List", err)...)
		return
	}
	if len(shape.Items) == 0 {
		return
	}
	items, err := d.Items("items")
	if err != nil {
		f.Problems = append(f.Problems, problems(d.File, "List", err)...)
		return
	}
	for i := range items {
		f.document(&items[i], false)
	}
}

// duplicates finds objects that stand twice in the file.
func (f *File) duplicates() {
	first := make(map[string]control.Source, len(f.Objects))
	for _, o := range f.Objects {
		m := o.Meta()
		if at, twice := first[m.Object()]; twice {
			f.Problems = append(f.Problems, control.Problem{Source: m.Source, Object: m.Object(), Reason: "stands twice: also at " + at.String()})
			continue
		}
		first[m.Object()] = m.Source
	}
}

// kinds are the decoders, by "apiVersion kind".
var kinds = map[string]func(*checker) (Object, error){
	"v1 Service":                                                 decoded(service),
	"discovery.k8s.io/v1 EndpointSlice":                          decoded(endpointSlice),
	"multicluster.x-k8s.io/v1beta1 ServiceExport":                decoded(serviceExport),
	"multicluster.x-k8s.io/v1alpha1 ServiceExport":               decoded(serviceExportAlpha),
	meshv1alpha1.GroupVersion.String() + " Workload":             decoded(workload),
	meshv1alpha1.GroupVersion.String() + " ClusterPeer":          decoded(clusterPeer),
	meshv1alpha1.GroupVersion.String() + " FailoverPolicy":       decoded(failoverPolicy),
	meshv1alpha1.GroupVersion.String() + " FederatedTrustDomain": decoded(federatedTrustDomain),
	meshv1alpha1.GroupVersion.String() + " AccessPolicy":         decoded(accessPolicy),
	meshv1alpha1.GroupVersion.String() + " QuotaPolicy":          decoded(quotaPolicy),
}

// decoded joins strict decoding into the kind's Go type and its conversion.
func decoded[T corev1.Service | discoveryv1.EndpointSlice | mcsv1beta1.ServiceExport | mcsv1alpha1.ServiceExport |
	meshv1alpha1.Workload | meshv1alpha1.ClusterPeer | meshv1alpha1.FailoverPolicy | meshv1alpha1.AccessPolicy | meshv1alpha1.QuotaPolicy |
	meshv1alpha1.FederatedTrustDomain](convert func(*checker, *T) Object,
) func(*checker) (Object, error) {
	return func(c *checker) (Object, error) {
		var in T
		if err := c.doc.Decode(&in); err != nil {
			return Object{}, err
		}
		return convert(c, &in), nil
	}
}

// unknownKind says why a kind is skipped, and what would be understood.
func unknownKind(h header) string {
	if h.kind == "ServiceImport" {
		return "a ServiceImport is written by control alone, beside the manifests; declare a ServiceExport"
	}
	return h.apiVersion + " " + h.kind + " is not used here and was skipped"
}

func cutLast(s string) (before, after string) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == ' ' {
			return s[:i], s[i+1:]
		}
	}
	return "", s
}

// problems flattens joined errors.
func problems(file, object string, err error) []control.Problem {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []control.Problem
		for _, e := range joined.Unwrap() {
			out = append(out, problems(file, object, e)...)
		}
		return out
	}
	if e, ok := errors.AsType[*strictyaml.Error](err); ok {
		p := control.Problem{Source: control.Source{File: e.File, Line: e.Line}, Object: object, Reason: e.Reason}
		if e.Field != "" {
			p.Reason = e.Field + ": " + e.Reason
		}
		return []control.Problem{p}
	}
	return []control.Problem{{Source: control.Source{File: file}, Object: object, Reason: err.Error()}}
}
