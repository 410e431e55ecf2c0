package strictyaml

import (
	"fmt"

	yamlv3 "go.yaml.in/yaml/v3"
)

// Items returns the elements of a list in the document as documents of their own, with their lines in the file: a Kubernetes
// "kind: List" holds objects of different kinds. Field paths of an item start at the item.
func (d *Document) Items(field string) ([]Document, error) {
	node := &d.root
	if node.Kind == yamlv3.DocumentNode && len(node.Content) > 0 {
		node = node.Content[0]
	}
	for _, step := range steps(field) {
		child, _ := descend(node, step)
		if child == nil {
			return nil, d.Errorf(field, "is missing")
		}
		node = child
	}
	if node.Kind != yamlv3.SequenceNode {
		return nil, d.Errorf(field, "is no list")
	}
	items := make([]Document, 0, len(node.Content))
	for i, n := range node.Content {
		// Written anew for Decode only; lines come from the nodes, which know where they stood.
		raw, err := yamlv3.Marshal(n)
		if err != nil {
			return nil, d.Errorf(fmt.Sprintf("%s[%d]", field, i), "%v", err)
		}
		items = append(items, Document{File: d.File, StartLine: n.Line + d.offset, Raw: raw, offset: d.offset, root: *n})
	}
	return items, nil
}
