package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/control/inject"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

// Where a cluster says what its sidecars are made from.
const (
	settingsConfigMap = "isthmus-injection"
	settingsKey       = "injection.yaml"
	bundleConfigMap   = "isthmus-trust-bundle"
	bundleKey         = "trust-bundle.pem"
)

// maxManifest bounds one file that is injected.
const maxManifest = 64 << 20

// injection is what the verb was asked to do.
type injection struct {
	files     []string
	recursive bool

	// Where the settings and the trust bundle come from: files, or a cluster.
	settings, bundle string
	// What counts more than the settings.
	trustDomain, control, image, captureBy string
	capture                                []string
}

func newInject(g *global) *cobra.Command {
	var in injection
	c := &cobra.Command{
		Use:   "inject -f FILE|FOLDER|-",
		Short: "Manifests with the sidecar put into their Pods",
		Long: `inject reads Kubernetes manifests and prints them with a sidecar in every Pod that they make: Pods, Deployments, StatefulSets,
DaemonSets, ReplicaSets, Jobs, CronJobs, and Lists of these. Everything else passes unchanged. It says on standard error what it did.
Where namespaces are labelled isthmus.dev/inject=enabled nobody needs it: the cluster does the same by itself.

What the sidecar is made from comes from a cluster, by its context (the ConfigMaps isthmus-injection and isthmus-trust-bundle), or from
files: --settings and --trust-bundle. Other flags count more than either. Manifests that were injected before get what is new.

A Pod that can't have a sidecar as it is makes it end with 1, and then it prints nothing.`,
		Example: example(
			"isthmus inject --context eu -f shop/ | kubectl --context eu apply -f -",
			"kubectl get deployment web -o yaml | isthmus inject -f - | kubectl apply -f -",
			"isthmus inject --settings injection.yaml --trust-bundle trust-bundle.pem -f web.yaml"),
		Args: func(c *cobra.Command, args []string) error {
			if err := noArgs(c, args); err != nil {
				return err
			}
			if len(in.files) == 0 {
				return errors.New("name what to inject: -f FILE, a folder, or - for standard input")
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), g.timeout)
			defer cancel()
			settings, bundle, err := in.facts(ctx, g)
			if err != nil {
				return err
			}
			var out bytes.Buffer
			found, err := in.all(c.InOrStdin(), &out, settings, bundle)
			for _, o := range found {
				in.tell(c.ErrOrStderr(), o)
			}
			if err != nil {
				return err
			}
			if slices.ContainsFunc(found, func(o inject.Object) bool { return o.Decision.Verdict == inject.Refused }) {
				return finding{"not every Pod can have a sidecar as it is; nothing was printed"}
			}
			_, err = out.WriteTo(c.OutOrStdout())
			return err
		},
	}
	flags := c.Flags()
	flags.StringArrayVarP(&in.files, "filename", "f", nil, "`file`, folder (its *.yaml, *.yml and *.json), or - for standard input; may be given several times")
	flags.BoolVarP(&in.recursive, "recursive", "R", false, "folders below too")
	flags.StringVar(&in.settings, "settings", "", "`file` of settings, as in the ConfigMap "+settingsConfigMap)
	flags.StringVar(&in.bundle, "trust-bundle", "", "`file` with the trust domain's roots, PEM")
	flags.StringVar(&in.trustDomain, "trust-domain", "", "the cluster's trust domain")
	flags.StringVar(&in.control, "control-address", "", "`host:port` of control, as Pods reach it")
	flags.StringVar(&in.image, "image", "", "`image` of the sidecar")
	flags.StringSliceVar(&in.capture, "capture", nil, "`prefixes` that services of the mesh have their addresses from")
	flags.StringVar(&in.captureBy, "capture-by", "", "init (a container of the Pod) or cni (the nodes' CNI plugin)")
	return c
}

// facts returns what the sidecars are made from.
func (in *injection) facts(ctx context.Context, g *global) (*inject.Settings, string, error) {
	settings := new(inject.Settings)
	// Where flags say all there is to say, nobody is asked.
	if in.settings != "" || in.trustDomain == "" || in.control == "" || in.image == "" {
		text, where, err := g.fact(ctx, in.settings, settingsConfigMap, settingsKey)
		if err != nil {
			return nil, "", err
		}
		if settings, err = inject.ParseSettings(where, text); err != nil {
			return nil, "", usage{err}
		}
	}
	bundle, _, err := g.fact(ctx, in.bundle, bundleConfigMap, bundleKey)
	if err != nil {
		return nil, "", err
	}
	settings.TrustDomain = cmp.Or(in.trustDomain, settings.TrustDomain)
	settings.Control = cmp.Or(strictyaml.Address(in.control), settings.Control)
	settings.Image = cmp.Or(in.image, settings.Image)
	settings.CaptureBy = cmp.Or(in.captureBy, settings.CaptureBy)
	if len(in.capture) > 0 {
		settings.Capture = in.capture
	}
	if err = errors.Join(settings.Check(), inject.CheckBundle(string(bundle))); err != nil {
		return nil, "", usage{err}
	}
	return settings, string(bundle), nil
}

// fact returns what a file holds or, when none is named, a ConfigMap of the cluster's Isthmus, and what to call it in an error.
func (g *global) fact(ctx context.Context, file, name, key string) (text []byte, where string, err error) {
	if file != "" {
		text, err = os.ReadFile(file) //nolint:gosec // G304: named by the user
		return text, file, err
	}
	contexts := g.contexts
	if len(contexts) == 0 {
		contexts = strings.FieldsFunc(os.Getenv(envContext), func(r rune) bool { return r == ',' })
	}
	if len(contexts) > 1 {
		return nil, "", usage{errors.New("each cluster has sidecars of its own: name one --context")}
	}
	cluster, err := g.source().Cluster(strings.Join(contexts, ""))
	if err != nil {
		return nil, "", fmt.Errorf("%w (or name files with --settings and --trust-bundle)", err)
	}
	client, err := cluster.Clientset()
	if err != nil {
		return nil, "", err
	}
	m, err := client.CoreV1().ConfigMaps(g.namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, "", cluster.Explain("get ConfigMap "+g.namespace+"/"+name, err)
	}
	value, ok := m.Data[key]
	if !ok {
		return nil, "", fmt.Errorf("context %q: ConfigMap %s/%s has no key %s", cluster.Context, g.namespace, name, key)
	}
	return []byte(value), name + "/" + key, nil
}

// all injects everything that was named.
func (in *injection) all(stdin io.Reader, out *bytes.Buffer, settings *inject.Settings, bundle string) (found []inject.Object, err error) {
	for _, name := range in.files {
		if name == "-" {
			if found, err = injectFile("standard input", stdin, out, settings, bundle, found); err != nil {
				return found, err
			}
			continue
		}
		files, err := in.within(name)
		if err != nil {
			return found, err
		}
		for _, file := range files {
			f, err := os.Open(file) //nolint:gosec // G304: named by the user
			if err != nil {
				return found, err
			}
			found, err = injectFile(file, f, out, settings, bundle, found)
			_ = f.Close() // only read
			if err != nil {
				return found, err
			}
		}
	}
	return found, nil
}

// within returns the manifests that a file or folder stands for.
func (in *injection) within(name string) ([]string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var files []string
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != name && !in.recursive:
			return fs.SkipDir
		case !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			files = append(files, path)
		}
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s: no *.yaml, *.yml or *.json in that folder", name)
	}
	return files, err
}

// injectFile injects the documents of one file. Those in which nothing changes are passed as they were written.
func injectFile(name string, from io.Reader, out *bytes.Buffer, settings *inject.Settings, bundle string, found []inject.Object) ([]inject.Object, error) {
	documents := utilyaml.NewYAMLReader(bufio.NewReader(io.LimitReader(from, maxManifest)))
	for number := 1; ; number++ {
		raw, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		where := fmt.Sprintf("%s, document %d", name, number)
		if err != nil {
			return found, fmt.Errorf("%s: %w", where, err)
		}
		asJSON, err := yaml.YAMLToJSONStrict(raw)
		if err != nil {
			return found, fmt.Errorf("%s: %w", where, err)
		}
		if string(bytes.TrimSpace(asJSON)) == "null" {
			continue // comments alone
		}
		patched, objects, err := settings.Manifest(asJSON, bundle)
		if err != nil {
			return found, fmt.Errorf("%s: %w", where, err)
		}
		found = append(found, objects...)
		if &patched[0] != &asJSON[0] {
			if raw, err = yaml.JSONToYAML(patched); err != nil {
				return found, fmt.Errorf("%s: %w", where, err)
			}
		}
		if out.Len() > 0 {
			out.WriteString("---\n")
		}
		out.Write(bytes.TrimRight(raw, "\n"))
		out.WriteByte('\n')
	}
}

// tell says what became of an object, if it makes Pods.
func (in *injection) tell(w io.Writer, o inject.Object) {
	d := o.Decision
	if d.Verdict == inject.Skipped && d.Reason == "" {
		return
	}
	if d.Verdict == inject.Skipped {
		d.Warnings = nil // they say the same, to those who see nothing else
	}
	line := o.String() + ": " + string(d.Verdict)
	if d.Reason != "" {
		line += ": " + d.Reason
	}
	_, _ = fmt.Fprintln(w, strings.Join(append([]string{line}, d.Warnings...), "\n  warning: ")) // nobody reads it: nothing is lost
}
