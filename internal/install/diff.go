package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Change is what would become of an object.
type Change struct {
	What   string // create, change, replace or delete
	Object string // kind, and namespace/name
	Fields []Field
}

// Field is one of an object, as it is and as it would be; nil where there is none.
type Field struct {
	Path     string
	Old, New any
}

// Diff returns what Apply would change, in its order. The API server is asked (a dry run), so that defaults and fields of others count as
// they do there.
func (e *Engine) Diff(ctx context.Context, p *Plan, o Options) ([]Change, error) {
	var out []Change
	_, err := e.kube.CoreV1().Namespaces().Get(ctx, e.Namespace, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("namespace %s: %w", e.Namespace, err)
	}
	fresh := err != nil
	if fresh {
		out = append(out, Change{What: "create", Object: "Namespace " + e.Namespace})
	}
	for _, of := range []struct {
		release string
		now     *Rendered
	}{{CRDs, p.CRDs}, {Mesh, p.Mesh}} {
		for _, object := range of.now.Objects {
			change, wrong := e.diffObject(ctx, of.release, object, o.ForceConflicts, fresh)
			if wrong != nil {
				return nil, wrong
			}
			if change != nil {
				out = append(out, *change)
			}
		}
		before, wrong := e.release(ctx, of.release)
		if wrong != nil {
			return nil, wrong
		}
		old, wrong := objectsOf(before)
		if wrong != nil {
			return nil, wrong
		}
		for _, object := range gone(old, of.now.Objects) {
			if is, wrong := e.live(ctx, object); wrong != nil {
				return nil, wrong
			} else if is != nil && e.ours(of.release, is) {
				out = append(out, Change{What: "delete", Object: title(object)})
			}
		}
	}
	change, err := e.diffStub(ctx, p)
	if change != nil {
		out = append(out, *change)
	}
	return out, err
}

func (e *Engine) diffObject(ctx context.Context, release string, o *unstructured.Unstructured, force, fresh bool) (*Change, error) {
	is, err := e.live(ctx, o)
	if err != nil {
		return nil, err
	}
	if is == nil && fresh {
		return &Change{What: "create", Object: title(o)}, nil // there is no namespace to try it in
	}
	then, err := e.apply(ctx, release, o, force, true)
	if replaceable(o, err) {
		return &Change{What: "replace", Object: title(o)}, nil
	}
	if err != nil {
		return nil, err
	}
	if is == nil {
		return &Change{What: "create", Object: title(o)}, nil
	}
	if fields := diff("", bare(is), bare(then)); len(fields) > 0 {
		return &Change{What: "change", Object: title(o), Fields: fields}, nil
	}
	return nil, nil
}

// diffStub returns what would become of the Corefile.
func (e *Engine) diffStub(ctx context.Context, p *Plan) (*Change, error) {
	m, err := e.coreDNS(ctx)
	if none := (*DNSError)(nil); errors.As(err, &none) && !p.coreDNSWanted() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	was := m.Data[corefile]
	then, err := removeStub(was)
	if err == nil && p.coreDNSWanted() {
		dns := "<ClusterIP of isthmus-dns>"
		if s, none := e.kube.CoreV1().Services(e.Namespace).Get(ctx, "isthmus-dns", metav1.GetOptions{}); none == nil {
			dns = s.Spec.ClusterIP
		}
		then, err = addStub(was, dns)
	}
	if err != nil {
		return nil, fmt.Errorf("ConfigMap kube-system/coredns: %w", err)
	}
	if then == was {
		return nil, nil
	}
	return &Change{What: "change", Object: "ConfigMap kube-system/coredns", Fields: []Field{{"data.Corefile", was, then}}}, nil
}

// bare returns an object without what the API server keeps in it for itself.
func bare(o *unstructured.Unstructured) any {
	o = o.DeepCopy()
	delete(o.Object, "status")
	for _, f := range []string{"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"} {
		unstructured.RemoveNestedField(o.Object, "metadata", f)
	}
	unstructured.RemoveNestedField(o.Object, "metadata", "annotations", "deprecated.daemonset.template.generation")
	return o.Object
}

// diff returns the fields in which two values differ. Lists whose entries have names are compared by these.
func diff(path string, old, now any) []Field {
	if reflect.DeepEqual(old, now) {
		return nil
	}
	a, ok1 := old.(map[string]any)
	b, ok2 := now.(map[string]any)
	if !ok1 || !ok2 {
		a, ok1 = byName(old)
		b, ok2 = byName(now)
	}
	if !ok1 || !ok2 {
		return diffLeaf(strings.TrimPrefix(path, "."), old, now)
	}
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	var out []Field
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		step := "." + k
		if strings.ContainsAny(k, "./") && !strings.HasPrefix(k, "[") {
			step = "[" + k + "]"
		} else if strings.HasPrefix(k, "[") {
			step = k
		}
		out = append(out, diff(path+step, a[k], b[k])...)
	}
	return out
}

// diffLeaf returns a field, and of two lists the entries that only one of them has.
func diffLeaf(path string, old, now any) []Field {
	a, ok1 := old.([]any)
	b, ok2 := now.([]any)
	if !ok1 || !ok2 {
		return []Field{{path, old, now}}
	}
	only := func(in, not []any) (out []any) {
		for _, v := range in {
			if !slices.ContainsFunc(not, func(w any) bool { return reflect.DeepEqual(v, w) }) {
				out = append(out, v)
			}
		}
		return out
	}
	var out []Field
	for _, v := range only(a, b) {
		out = append(out, Field{path + "[]", v, nil})
	}
	for _, v := range only(b, a) {
		out = append(out, Field{path + "[]", nil, v})
	}
	if len(out) == 0 { // their order differs
		return []Field{{path, old, now}}
	}
	return out
}

// byName returns the entries of a list by their names, where all have different ones.
func byName(v any) (map[string]any, bool) {
	list, ok := v.([]any)
	if !ok {
		return nil, false
	}
	out := map[string]any{}
	for _, entry := range list {
		m, _ := entry.(map[string]any)
		name, _ := m["name"].(string)
		if name == "" || out["["+name+"]"] != nil {
			return nil, false
		}
		out["["+name+"]"] = entry
	}
	return out, len(out) > 0
}

// PrintChanges writes changes for people.
func PrintChanges(w io.Writer, changes []Change) error {
	var s strings.Builder
	if len(changes) == 0 {
		s.WriteString("nothing would change\n")
	}
	for _, c := range changes {
		fmt.Fprintf(&s, "%-8s%s\n", c.What, c.Object)
		for _, f := range c.Fields {
			a, ok1 := f.Old.(string)
			b, ok2 := f.New.(string)
			if ok1 && ok2 && strings.Contains(a+b, "\n") {
				fmt.Fprintf(&s, "         %s:\n", f.Path)
				for _, line := range lines(a, b) {
					fmt.Fprintf(&s, "           %s\n", line)
				}
				continue
			}
			fmt.Fprintf(&s, "         %s: %s -> %s\n", f.Path, short(f.Old), short(f.New))
		}
	}
	_, err := io.WriteString(w, s.String())
	return err
}

// maxShown bounds what is shown of a value.
const maxShown = 400

func short(v any) string {
	if v == nil {
		return "(none)"
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	if len(text) > maxShown {
		return string(text[:maxShown]) + "… (" + strconv.Itoa(len(text)) + " bytes)"
	}
	return string(text)
}

// lines returns the lines in which two texts differ, with - and +: all between the first and the last difference.
func lines(a, b string) []string {
	x, y := strings.Split(strings.TrimSuffix(a, "\n"), "\n"), strings.Split(strings.TrimSuffix(b, "\n"), "\n")
	for len(x) > 0 && len(y) > 0 && x[0] == y[0] {
		x, y = x[1:], y[1:]
	}
	for len(x) > 0 && len(y) > 0 && x[len(x)-1] == y[len(y)-1] {
		x, y = x[:len(x)-1], y[:len(y)-1]
	}
	var out []string
	for _, l := range x {
		out = append(out, "- "+l)
	}
	for _, l := range y {
		out = append(out, "+ "+l)
	}
	return out
}

// PrintManifests writes what an installation consists of as YAML: the namespace, the kinds, and the mesh. kubectl apply -f takes it
// in that order, server-side.
func PrintManifests(ctx context.Context, w io.Writer, namespace string, values Values, build Build) error {
	e := &Engine{Namespace: namespace}
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": namespace, "labels": e.namespace().Labels},
	})
	if err != nil {
		return err
	}
	crds, err := Render(ctx, CRDs, namespace, "", nil, build)
	if err != nil {
		return err
	}
	mesh, err := Render(ctx, Mesh, namespace, "", values, build)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "---\n%s%s%s", text, crds.Manifest, mesh.Manifest)
	return err
}
