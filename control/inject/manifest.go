package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"
)

// Object is what became of one object of a manifest.
type Object struct {
	Kind, Namespace, Name string
	Decision              Decision // of a kind that holds no Pod: Skipped, without a reason
}

// String returns "Kind namespace/name".
func (o Object) String() string {
	return o.Kind + " " + strings.TrimPrefix(o.Namespace+"/"+o.Name, "/")
}

// templates are the kinds that make Pods, and where the template is in them.
var templates = map[string][]string{
	"v1/Pod":                   {},
	"v1/PodTemplate":           {"template"},
	"v1/ReplicationController": {"spec", "template"},
	"apps/v1/Deployment":       {"spec", "template"},
	"apps/v1/ReplicaSet":       {"spec", "template"},
	"apps/v1/StatefulSet":      {"spec", "template"},
	"apps/v1/DaemonSet":        {"spec", "template"},
	"batch/v1/Job":             {"spec", "template"},
	"batch/v1/CronJob":         {"spec", "jobTemplate", "spec", "template"},
}

// Manifest injects the Pods of one object (JSON), or of all in a List. Objects that make no Pods pass unchanged: then out is in itself.
func (s *Settings) Manifest(in []byte, bundle string) (out []byte, objects []Object, err error) {
	decoder := json.NewDecoder(bytes.NewReader(in))
	decoder.UseNumber()
	var doc map[string]any
	if err = decoder.Decode(&doc); err != nil {
		return nil, nil, fmt.Errorf("no object: %w", err)
	}
	if objects, err = s.object(doc, bundle, nil); err != nil {
		return nil, nil, err
	}
	for i := range objects {
		if len(objects[i].Decision.Patch) > 0 {
			out, err = json.Marshal(doc)
			return out, objects, err
		}
	}
	return in, objects, nil
}

// object changes doc in place, and adds what it did to what was done before.
func (s *Settings) object(doc map[string]any, bundle string, done []Object) ([]Object, error) {
	version, _ := doc["apiVersion"].(string)
	kind, _ := doc["kind"].(string)
	if items, isList := doc["items"].([]any); isList && strings.HasSuffix(kind, "List") {
		var err error
		for i, item := range items {
			o, isObject := item.(map[string]any)
			if !isObject {
				return done, fmt.Errorf("items[%d]: no object", i)
			}
			if done, err = s.object(o, bundle, done); err != nil {
				return done, err
			}
		}
		return done, nil
	}
	o := Object{Kind: kind, Decision: Decision{Verdict: Skipped}}
	meta, _ := doc["metadata"].(map[string]any)
	o.Name, _ = meta["name"].(string)
	o.Namespace, _ = meta["namespace"].(string)
	path, makesPods := templates[version+"/"+kind]
	if !makesPods {
		return append(done, o), nil
	}
	holder, key := map[string]any{"": doc}, ""
	for _, step := range path {
		below, isObject := holder[key].(map[string]any)
		if !isObject {
			break
		}
		holder, key = below, step
	}
	template, isObject := holder[key].(map[string]any)
	if !isObject {
		return done, fmt.Errorf("%s: %s is missing", o, strings.Join(path, "."))
	}
	patched, d, err := s.template(template, o.Namespace, bundle)
	if err != nil {
		return done, fmt.Errorf("%s: %w", o, err)
	}
	if len(path) > 0 {
		holder[key] = patched
	} else {
		maps.Copy(doc, patched) // a Pod is its own template
	}
	o.Decision = d
	return append(done, o), nil
}

// template injects one template of a Pod, or a Pod: they read the same.
func (s *Settings) template(in map[string]any, namespace, bundle string) (map[string]any, Decision, error) {
	if _, isObject := in["metadata"].(map[string]any); !isObject { // a template need not say anything of itself
		in["metadata"] = map[string]any{}
	}
	raw, err := json.Marshal(in)
	if err != nil {
		return nil, Decision{}, err
	}
	pod, err := readPod(raw)
	if err != nil {
		return nil, Decision{}, err
	}
	d := s.Decide(pod, namespace, bundle, ByNamespace)
	if len(d.Patch) == 0 {
		return in, d, nil
	}
	if raw, err = Apply(raw, d.Patch); err != nil {
		return nil, d, err
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var out map[string]any
	return out, d, decoder.Decode(&out)
}

// readPod reads a Pod. Fields that this program does not know are none of its business; names in another case are other names.
func readPod(raw []byte) (*corev1.Pod, error) {
	pod := new(corev1.Pod)
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, pod); err != nil {
		return nil, fmt.Errorf("no Pod: %w", err)
	}
	if len(pod.Spec.Containers) == 0 {
		return nil, errors.New("no Pod: spec.containers is missing")
	}
	return pod, nil
}

// Apply makes a patch's changes to a JSON document.
func Apply(doc []byte, patch []Op) ([]byte, error) {
	raw, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	p, err := jsonpatch.DecodePatch(raw)
	if err != nil {
		return nil, err
	}
	return p.Apply(doc)
}
