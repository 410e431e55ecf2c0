package strictyaml

import (
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
)

// Line returns the 1-based line in the file of a field such as "spec.ports[0].port". Where the path leaves the document, the line of
// the deepest part that is there.
func (d *Document) Line(field string) int {
	node := &d.root
	if node.Kind == yamlv3.DocumentNode && len(node.Content) > 0 {
		node = node.Content[0]
	}
	line := node.Line
	for _, step := range steps(field) {
		child, at := descend(node, step)
		if child == nil {
			break
		}
		node, line = child, at
	}
	return line + d.offset
}

// descend returns the child that step names, and the line of its key.
func descend(n *yamlv3.Node, step string) (*yamlv3.Node, int) {
	switch n.Kind {
	case yamlv3.MappingNode:
		// The last of duplicate keys: the one that is too many.
		for i := len(n.Content) - 2; i >= 0; i -= 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1], n.Content[i].Line
			}
		}
	case yamlv3.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i], n.Content[i].Line
		}
	default: // a scalar has no children
	}
	return nil, 0
}

// steps splits "spec.ports[0].port" into its parts. A key that holds dots is quoted by nobody: the reader joins what it can.
func steps(field string) []string {
	field = strings.NewReplacer("[", ".", "]", "").Replace(field)
	return strings.FieldsFunc(field, func(r rune) bool { return r == '.' })
}
