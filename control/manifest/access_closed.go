package manifest

import (
	"cmp"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
)

// closed is an AccessPolicy that refuses everything to what spec selects: to all of its namespace, where that is not understood. One that
// would have refused nothing is none.
func closed(c *checker, spec *meshv1alpha1.AccessPolicySpec) []Object {
	if spec.Mode == modeAudit {
		return nil
	}
	p := &control.AccessPolicy{Closed: true, Meta: control.Meta{
		Source: c.source(), Kind: accessKind, Namespace: cmp.Or(c.header.namespace, defaultNamespace), Name: c.header.name,
	}}
	if len(validation.IsDNS1123Label(p.Namespace)) > 0 {
		return nil // there are no workloads in it
	}
	probe := &checker{header: c.header}
	if p.Selects = probe.selection(p.Namespace, spec.Selector, spec.TargetRefs); len(probe.errs) > 0 {
		p.Selects = control.Selection{}
	}
	return []Object{{Access: p}}
}

// closedDocument is closed for a document that may not even decode.
func closedDocument(c *checker) []Object {
	var whole map[string]any
	spec := new(meshv1alpha1.AccessPolicySpec)
	if err := c.doc.Decode(&whole); err != nil {
		return closed(c, spec)
	}
	in, _ := whole["spec"].(map[string]any)
	maps.DeleteFunc(in, func(field string, _ any) bool { return field != "selector" && field != "targetRefs" && field != "mode" })
	text, err := json.Marshal(in)
	if err == nil {
		d := json.NewDecoder(strings.NewReader(string(text)))
		d.DisallowUnknownFields()
		err = d.Decode(spec)
	}
	if err != nil {
		spec = new(meshv1alpha1.AccessPolicySpec)
	}
	return closed(c, spec)
}

// What is looked for in text that can't be read as YAML.
var (
	textKind      = regexp.MustCompile(`(?m)^[^#\n]*\bkind["']?[ \t]*:[ \t]*["']?` + accessKind + `\b`)
	textNamespace = regexp.MustCompile(`(?m)^[^#\n]*?\bnamespace["']?[ \t]*:[ \t]*["']?([a-z0-9-]{1,63})`)
	textName      = regexp.MustCompile(`(?m)^[^#\n]*?\bname["']?[ \t]*:[ \t]*["']?([a-z0-9.-]{1,253})`)
	textMode      = regexp.MustCompile(`(?m)^[^#\n]*?\bmode["']?[ \t]*:[ \t]*["']?(\w+)`)
	textSeparator = regexp.MustCompile(`(?m)^---`)
)

// closedText adds to guards what text seems to have of AccessPolicies beside them, as ones that refuse everything to their namespace: a slip
// may be such that nothing of a file can be read, and what it guards must not stand open for that.
func closedText(file, text string, guards []Object) []Object {
	line := 1
	for _, part := range textSeparator.Split(text, -1) {
		at := line
		line += strings.Count(part, "\n")
		if mode := textMode.FindStringSubmatch(part); !textKind.MatchString(part) || mode != nil && mode[1] == modeAudit {
			continue
		}
		p := control.AccessPolicy{Closed: true, Meta: control.Meta{
			Source: control.Source{File: file, Line: at}, Kind: accessKind, Namespace: defaultNamespace, Name: "unreadable",
		}}
		if m := textName.FindStringSubmatch(part); m != nil {
			p.Name = m[1]
		}
		namespaces := []string{defaultNamespace}
		if found := textNamespace.FindAllStringSubmatch(part, -1); found != nil {
			namespaces = nil
			for _, m := range found {
				namespaces = append(namespaces, m[1])
			}
		}
		for _, namespace := range namespaces {
			if len(validation.IsDNS1123Label(namespace)) > 0 || slices.ContainsFunc(guards, func(o Object) bool {
				return o.Access.Namespace == namespace && o.Access.Name == p.Name
			}) {
				continue
			}
			closed := p
			closed.Namespace = namespace
			guards = append(guards, Object{Access: &closed})
		}
	}
	return guards
}

// hasSpec wants a spec to be written down, be it an empty one.
