package manifest

import (
	"slices"
	"testing"
)

// TestClosedText: an AccessPolicy that can't even be read as YAML closes its namespace, as one does that is not understood.
func TestClosedText(t *testing.T) {
	const head = "apiVersion: isthmus.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {namespace: shop, name: p}\n"
	for _, c := range []struct {
		name, text string
		want       []string // namespace/name, those that refuse everything with "!"
	}{
		{"a field", head + "spec: {rules: [{nam: x}]}\n", []string{"shop/p!"}},
		{"a bracket", head + "spec: {rules: [\n", []string{"shop/p!"}},
		{"a tab", head + "spec:\n\trules: []\n", []string{"shop/p!"}},
		{"a key twice", head + "spec: {mode: Enforce, mode: Enforce}\n", []string{"shop/p!"}},
		{"no apiVersion", "kind: AccessPolicy\nmetadata: {namespace: shop, name: p}\nspec: {}\n", []string{"shop/p!"}},
		{"JSON", `{"kind": "AccessPolicy", "metadata": {"namespace": "shop", "name": "p"}, "spec": {`, []string{"shop/p!"}},
		{"no namespace", "kind: AccessPolicy\nmetadata: {name: p}\nspec: {[\n", []string{"default/p!"}},
		{"another document of the file", head + "spec: {}\n---\nkind: Service\nmetadata: {name: [\n", []string{"shop/p!"}},
		{"in a List", "apiVersion: v1\nkind: List\nfoo: 1\nitems:\n- {kind: AccessPolicy, metadata: {namespace: shop, name: p}}\n", []string{"shop/p!"}},
		{"another document without a kind", head + "spec: {}\n---\nmetadata: {}\n", []string{"shop/p"}},
		{"in audit mode", head + "spec: {mode: Audit, rules: [\n", nil},
		{"a comment", "kind: Service\n# kind: AccessPolicy\nmetadata: {name: [\n", nil},
		{"none", "kind: Service\nmetadata: {namespace: shop, name: [\n", nil},
	} {
		f := Parse("f.yaml", []byte(c.text))
		var got []string
		for _, o := range f.Guards {
			name := o.Access.Namespace + "/" + o.Access.Name
			if o.Access.Closed {
				name += "!"
			}
			got = append(got, name)
		}
		if len(f.Problems) == 0 || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v (%v), want %v", c.name, got, f.Problems, c.want)
		}
	}
}
