package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/template"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// The manifests that a playground's clusters begin with. Each is written once; what its user makes of it stays.

var workloadManifest = template.Must(template.New("workload").Parse(`# {{.Workload.Namespace}}/{{.Workload.App}}: the sample application, on this machine, behind a sidecar.
apiVersion: isthmus.dev/v1alpha1
kind: Workload
metadata:
  namespace: {{.Workload.Namespace}}
  name: {{.Workload.Name}}
  labels: {app: {{.Workload.App}}}
spec:
  serviceAccount: {{.Workload.App}}
  address: {{.Host}}
  ports:
  - {name: http, port: {{.HTTP}}}
  - {name: tcp, port: {{.TCP}}}
  sidecar: {inboundPort: {{.Inbound}}}
{{- if .First}}
---
apiVersion: v1
kind: Service
metadata: {namespace: {{.Workload.Namespace}}, name: {{.Workload.App}}}
spec:
  selector: {app: {{.Workload.App}}}
  ports:
  - {name: http, port: 80, targetPort: http, appProtocol: http}
  - {name: grpc, port: 9090, targetPort: http, appProtocol: grpc}
  - {name: tcp, port: 7000, targetPort: tcp, appProtocol: tcp}
  - {name: udp, port: 7000, targetPort: tcp, protocol: UDP}
{{- end}}
`))

var exportManifest = template.Must(template.New("export").Parse(`# Lets every peer cluster call {{.Namespace}}/{{.App}}. Remove this file, and they can't.
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {namespace: {{.Namespace}}, name: {{.App}}}
`))

var failoverManifest = template.Must(template.New("failover").Parse(`# Where calls to {{.Namespace}}/{{.App}} go: the first tier that has a healthy copy.
apiVersion: isthmus.dev/v1alpha1
kind: FailoverPolicy
metadata: {namespace: {{.Namespace}}, name: {{.App}}}
spec:
  targetRefs:
  - {group: multicluster.x-k8s.io, kind: ServiceImport, name: {{.App}}}
  tiers:
  - {name: home, match: {cluster: Same}}
{{- range .Tiers}}
  - {name: {{.}}, match: {cluster: {{.}}}}
{{- end}}
`))

var peerManifest = template.Must(template.New("peer").Parse(`# Lets the cluster {{.Cluster}} in: what it offers may be called from here, and what is exported here, from there.
apiVersion: isthmus.dev/v1alpha1
kind: ClusterPeer
metadata: {name: {{.Cluster}}}
spec:
  trustDomain: {{.TrustDomain}}
  rootFingerprint: {{.RootFingerprint}}
  bus:
    key: {{.BusKey}}
    urls: [{{range $i, $u := .BusURLs}}{{if $i}}, {{end}}"{{$u}}"{{end}}]
`))

// sampleManifests writes what a cluster begins with.
func (p *Playground) sampleManifests(c Cluster) error {
	exports := map[service]bool{}
	served := map[service]bool{}
	for _, w := range c.Workloads {
		first := !served[service{w.Namespace, w.App}] // has the Service of all copies in its file
		served[service{w.Namespace, w.App}] = true
		app := unit{cluster: c.Name, name: w.Name + "-app", program: App, workload: w}
		sidecar := unit{cluster: c.Name, name: w.Name + "-sidecar", program: Sidecar, workload: w}
		err := p.render(c, w.Name+".yaml", workloadManifest, struct {
			Workload           Workload
			Host               string
			HTTP, TCP, Inbound int
			First              bool
		}{w, p.state.hostOf(app), p.state.port(app, "http"), p.state.port(app, "tcp"), p.state.port(sidecar, "inbound"), first})
		if err != nil {
			return err
		}
		if w.Exported {
			exports[service{w.Namespace, w.App}] = true
			if err := p.render(c, w.App+"-export.yaml", exportManifest, w); err != nil {
				return err
			}
		}
	}
	for of, tiers := range p.state.Spec.exporters() {
		calls := slices.ContainsFunc(c.Workloads, func(w Workload) bool { return service{w.Namespace, w.App} != of })
		if exports[of] && !calls {
			continue // nobody calls it from here
		}
		tiers = slices.DeleteFunc(tiers, func(name string) bool { return name == c.Name }) // that is home
		err := p.render(c, of.Name+"-failover.yaml", failoverManifest, struct {
			Namespace, App string
			Tiers          []string
		}{of.Namespace, of.Name, tiers})
		if err != nil {
			return err
		}
	}
	return nil
}

// service is a Service's namespace and name.
type service struct{ Namespace, Name string }

// exporters returns which clusters export which sample service, in the order of the spec.
func (s Spec) exporters() map[service][]string {
	out := map[service][]string{}
	for _, c := range s.Clusters {
		for _, w := range c.Workloads {
			of := service{w.Namespace, w.App}
			if w.Exported && !slices.Contains(out[of], c.Name) {
				out[of] = append(out[of], c.Name)
			}
		}
	}
	return out
}

// peerManifests lets every other cluster that has introduced itself into c.
func (p *Playground) peerManifests(c Cluster, introductions map[string]admin.Introduction) error {
	for _, o := range p.state.Spec.Clusters {
		intro, ok := introductions[o.Name]
		if o.Name == c.Name || !ok {
			continue
		}
		if err := p.render(c, peerFile(o), peerManifest, intro); err != nil {
			return err
		}
	}
	return nil
}

// peerFile is the name of the manifest that lets a cluster in.
func peerFile(of Cluster) string { return "peer-" + of.Name + ".yaml" }

// render writes one of our manifests into a cluster's folder. A file that we wrote before belongs to the user since: it is
// brought up to date while it is as we left it; once changed or removed, it is left alone.
func (p *Playground) render(c Cluster, name string, t *template.Template, data any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return fmt.Errorf("manifest %s: %w", name, err)
	}
	path, key := filepath.Join(p.ManifestsOf(c.Name), name), c.Name+"/"+name
	hash := func(b []byte) string { sum := sha256.Sum256(b); return hex.EncodeToString(sum[:]) }
	if left, ours := p.state.Written[key]; ours {
		now, err := os.ReadFile(path) //nolint:gosec // G304: a manifest of the playground
		if err != nil || hash(now) != left || left == hash(b.Bytes()) {
			return nil //nolint:nilerr // removed by its user
		}
	}
	if err := writeFile(path, b.Bytes(), 0o644); err != nil {
		return err
	}
	p.state.Written[key] = hash(b.Bytes())
	return nil
}
