package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	chartutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/deploy/charts"
)

// The charts, which are the names of their releases too.
const (
	Mesh = "isthmus"
	CRDs = "isthmus-crds"
)

// Build is what the charts are told of the program that installs them.
type Build struct {
	Version string // a release, v1.2.3; empty: none
}

// Values are what a user gives a chart.
type Values = map[string]any

// Rendered is a chart with its values.
type Rendered struct {
	Chart    *chart.Chart
	Values   Values // as they were given, without the chart's defaults
	Merged   Values // with them
	Manifest string
	Objects  []*unstructured.Unstructured // in the order in which they are applied
}

// load reads a chart from the program itself.
func load(name string, build Build) (*chart.Chart, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(charts.Files, name, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(charts.Files, file)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(file, name+"/"), Data: data})
		return err
	})
	if err != nil {
		return nil, err
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", name, err)
	}
	if build.Version != "" {
		c.Metadata.Version = strings.TrimPrefix(build.Version, "v")
		c.Metadata.AppVersion = build.Version
	}
	return c, nil
}

// Render returns what a chart makes of values. kubeVersion is the API server's; empty: some recent one.
func Render(ctx context.Context, name, namespace, kubeVersion string, values Values, build Build) (*Rendered, error) {
	c, err := load(name, build)
	if err != nil {
		return nil, err
	}
	caps := common.DefaultCapabilities.Copy()
	if kubeVersion != "" {
		v, wrong := common.ParseKubeVersion(kubeVersion)
		if wrong != nil {
			return nil, fmt.Errorf("version of Kubernetes: %w", wrong)
		}
		caps.KubeVersion = *v
	}
	options := common.ReleaseOptions{Name: name, Namespace: namespace, Revision: 1, IsInstall: true}
	merged, err := chartutil.ToRenderValues(c, values, options, caps)
	if err != nil {
		return nil, &ValuesError{err}
	}
	files, err := engine.Engine{Strict: true}.RenderWithContext(ctx, c, merged)
	if err != nil {
		return nil, &ValuesError{renderError(err)}
	}
	for file := range files {
		if path.Base(file) == "NOTES.txt" || strings.HasPrefix(path.Base(file), "_") {
			delete(files, file)
		}
	}
	r := &Rendered{Chart: c, Values: values}
	r.Merged, _ = merged["Values"].(common.Values)
	if r.Objects, err = parse(files); err != nil {
		return nil, fmt.Errorf("chart %s: %w", name, err)
	}
	var manifest strings.Builder
	for _, o := range r.Objects {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			return nil, err
		}
		manifest.WriteString("---\n")
		manifest.Write(text)
	}
	r.Manifest = manifest.String()
	return r, nil
}

// ValuesError is what is wrong with the values that a user gave.
type ValuesError struct{ err error }

// Error says it as the schema, or the chart, does.
func (e *ValuesError) Error() string { return "values: " + strings.TrimSpace(e.err.Error()) }

// Unwrap returns Helm's error.
func (e *ValuesError) Unwrap() error { return e.err }

// renderError takes the words of a template's "fail" out of the trace that they come with.
func renderError(err error) error {
	const mark = "error calling fail: "
	if _, words, ok := strings.Cut(err.Error(), mark); ok {
		return errors.New(words)
	}
	return err
}

// parse splits rendered files into objects, in the order in which they are applied: by kind as Helm has it, then by file and place.
func parse(files map[string]string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for _, name := range slices.Sorted(maps.Keys(files)) {
		docs := releaseutil.SplitManifests(files[name])
		keys := slices.SortedFunc(maps.Keys(docs), func(a, b string) int {
			return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) // "manifest-" and a number
		})
		for _, k := range keys {
			o := &unstructured.Unstructured{}
			if err := yaml.UnmarshalStrict([]byte(docs[k]), &o.Object); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if len(o.Object) == 0 {
				continue
			}
			if o.GetKind() == "" || o.GetName() == "" {
				return nil, fmt.Errorf("%s: an object without kind or name", name)
			}
			out = append(out, o)
		}
	}
	slices.SortStableFunc(out, func(a, b *unstructured.Unstructured) int { return cmp.Compare(rank(a), rank(b)) })
	return out, nil
}

// rank is where a kind stands in Helm's order; kinds that it does not name come last.
func rank(o *unstructured.Unstructured) int {
	if i := slices.Index(releaseutil.InstallOrder, o.GetKind()); i >= 0 {
		return i
	}
	return len(releaseutil.InstallOrder)
}
