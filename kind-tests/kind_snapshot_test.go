package kindtests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/kind-tests/apiserver"
)

// snapshot is all that stands in a cluster: by path, what somebody has declared.
type snapshot map[string]string

// passing are kinds whose objects come and go by themselves.
var passing = []string{"events", "leases", "componentstatuses"}

// snapshot lists the objects of all kinds that there are.
func (c *member) snapshot(ctx context.Context) (snapshot, error) {
	groups := []string{"/api/v1"}
	var list struct {
		Groups []struct{ PreferredVersion struct{ GroupVersion string } }
	}
	if err := c.read(ctx, "/apis", &list); err != nil {
		return nil, err
	}
	for _, g := range list.Groups {
		groups = append(groups, "/apis/"+g.PreferredVersion.GroupVersion)
	}
	out := snapshot{}
	for _, g := range groups {
		var resources struct {
			Resources []struct {
				Name  string
				Verbs []string
			}
		}
		if err := c.read(ctx, g, &resources); err != nil {
			if errors.Is(err, apiserver.ErrNotFound) {
				continue // a kind that is about to go
			}
			return nil, err
		}
		for _, r := range resources.Resources {
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "list") || slices.Contains(passing, r.Name) {
				continue
			}
			if err := c.addTo(ctx, out, g, r.Name); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (c *member) addTo(ctx context.Context, out snapshot, group, resource string) error {
	var objects struct{ Items []map[string]any }
	if err := c.read(ctx, group+"/"+resource, &objects); err != nil {
		if errors.Is(err, apiserver.ErrNotFound) {
			return nil
		}
		return err
	}
	for _, o := range objects.Items {
		meta, _ := o["metadata"].(map[string]any)
		if owners, _ := meta["ownerReferences"].([]any); len(owners) > 0 && (resource == "pods" || resource == "endpointslices") {
			continue // made anew at any time by what owns it, which is looked at; and it goes with that
		}
		path := fmt.Sprint(group, "/", resource, "/", meta["namespace"], "/", meta["name"])
		// Counters and the stamps of whoever wrote are not what was declared; nor is status.
		for _, k := range []string{"resourceVersion", "generation", "managedFields", "creationTimestamp", "uid"} {
			delete(meta, k)
		}
		delete(o, "status")
		text, err := json.MarshalIndent(o, "", " ")
		if err != nil {
			return err
		}
		out[path] = string(text)
		if resource == "endpoints" { // where a Service's Pods happen to be
			out[path] = ""
		}
	}
	return nil
}

func (c *member) read(ctx context.Context, path string, into any) error {
	data, err := c.api.Get(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// differ says what is in one and not in the other, or not the same.
func (s snapshot) differ(after snapshot) error {
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(after)) {
		if _, ok := s[path]; !ok {
			lines = append(lines, "left: "+path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(s)) {
		switch now, ok := after[path]; {
		case !ok:
			lines = append(lines, "gone: "+path)
		case now != s[path]:
			lines = append(lines, "changed: "+path+"\nfrom "+s[path]+"\nto   "+now)
		}
	}
	if lines == nil {
		return nil
	}
	return errors.New(strings.Join(lines, "\n"))
}
