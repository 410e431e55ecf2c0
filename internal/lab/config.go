package lab

import (
	"bytes"
	"fmt"
	"strconv"
	"text/template"
)

// The configuration files of the programs. Who reads them here sees what to write for programs of one's own.

var configs = map[Program]*template.Template{
	Control: configTemplate(`# The control plane of cluster {{.Cluster.Name}}.
cluster: {{.Cluster.Name}}
trustDomain: {{.Cluster.TrustDomain}}
region: {{.Cluster.Region}}
zone: {{.Cluster.Zone}}
manifests: {{quote .Manifests}}
state: {{quote .State}}
listen: {{.At "grpc"}}
bus:
  listen: {{.At "bus"}}
  advertise: ["tls://{{.At "bus"}}"]
admin:
  socket: {{quote .Socket}}
  listen: {{.At "admin"}}
nodeProxies: [node-0]
`),
	Gateway: configTemplate(`# A gateway of cluster {{.Cluster.Name}}.
id: {{.Name}}
control: {{.Control}}
trustDomain: {{.Cluster.TrustDomain}}
state: {{quote .State}}
joinTokenFile: {{quote .Token}}
trustBundleFile: {{quote .TrustBundle}}
listen:
  streams: {{.At "streams"}}
  quic: {{.At "quic"}}
  admin: {{.At "admin"}}
advertise:
  streams: {{.At "streams"}}
  quic: {{.At "quic"}}
`),
	Sidecar: configTemplate(`# The sidecar of a workload of cluster {{.Cluster.Name}}.
workload: {{.Workload.Namespace}}/{{.Workload.Name}}
` + sidecarConfig + `{{- with .Datagrams}}
listeners: # the application's datagrams to the service
- {service: {{.}}, port: {{$.TCPPort}}, protocol: udp, listen: {{$.At "udp"}}}
{{- end}}
`),
	Node: configTemplate(`# The node proxy of cluster {{.Cluster.Name}}: it stands in for workloads that have no sidecar.
node: {{.Name}}
` + sidecarConfig),
}

const sidecarConfig = `control: {{.Control}}
trustDomain: {{.Cluster.TrustDomain}}
state: {{quote .State}}
joinTokenFile: {{quote .Token}}
trustBundleFile: {{quote .TrustBundle}}
listen:
  inbound: {{.At "inbound"}}
  proxy: {{.At "proxy"}}
  dns: {{.At "dns"}}
  admin: {{.At "admin"}}
{{- if .Captured}}
  captured: 127.0.0.1:{{.Captured}}
{{- end}}
{{- if .WorkloadAPI}}
  workloadAPI: {{quote .WorkloadAPI}}
{{- end}}
advertise:
  inbound: {{.At "inbound"}}
`

const logConfig = `log: {level: info, format: text}
`

// ledgerLogConfig has sidecars note each request, for programs to read (internal/ledger).
const ledgerLogConfig = `log: {level: info, format: json, requests: info}
`

func configTemplate(text string) *template.Template {
	// A Go string literal of printable text is a YAML double-quoted scalar too.
	return template.Must(template.New("config").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(text + logConfig))
}

// configView is what the templates see.
type configView struct {
	p           *Playground
	u           unit
	Cluster     Cluster
	Name        string
	Workload    Workload
	Control     string // host:port
	Manifests   string
	Socket      string
	State       string
	Token       string
	TrustBundle string
	WorkloadAPI string // of a sidecar; empty: not served
	Datagrams   string // the service that a sidecar takes datagrams for; empty: for none
	Captured    int    // port of a sidecar to which the kernel brings calls by address; 0: it does not
}

// TCPPort is the port of the sample's Service on which it echoes bytes, and datagrams.
func (configView) TCPPort() int { return 7000 }

// At returns the address of one of the program's own ports.
func (v configView) At(purpose string) string { return v.p.state.address(v.u, purpose) }

// config renders the configuration file of a program; nil for one that has none.
func (p *Playground) config(u unit) ([]byte, error) {
	t, ok := configs[u.program]
	if !ok {
		return nil, nil
	}
	c, ok := p.state.Spec.Cluster(u.cluster)
	if !ok {
		return nil, fmt.Errorf("%s: %w", u.id(), ErrNoTarget)
	}
	workloadAPI, captured := "", 0
	if u.program == Sidecar {
		workloadAPI = p.workloadSocket(u)
		if p.state.Network != nil {
			captured = capturedPort
		}
	}
	datagrams := ""
	if u.program == Sidecar {
		datagrams = p.state.Spec.exported()
	}
	var b bytes.Buffer
	err := t.Execute(&b, configView{
		p: p, u: u, Cluster: c, Name: u.name, Workload: u.workload,
		Control:   p.state.address(unit{cluster: c.Name, name: "control"}, "grpc"),
		Manifests: p.ManifestsOf(c.Name), Socket: p.SocketOf(c.Name), State: p.stateDir(u),
		Token: p.tokenFile(u), TrustBundle: p.trustBundle(c.Name), WorkloadAPI: workloadAPI, Captured: captured, Datagrams: datagrams,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: configuration: %w", u.id(), err)
	}
	config := b.Bytes()
	if p.state.Ledger && (u.program == Sidecar || u.program == Node) {
		config = append(bytes.TrimSuffix(config, []byte(logConfig)), ledgerLogConfig...)
	}
	return config, nil
}

// command returns how a program is started.
func (p *Playground) command(u unit) (command, error) {
	path, err := p.opts.Binaries.path(u.program)
	if err != nil {
		return command{}, err
	}
	c := command{path: path, dir: p.folder(u), log: p.logFile(u), args: []string{"--config", p.configFile(u)}}
	if u.program == App {
		c.args = []string{
			"playground", "workload", "--cluster", u.cluster, "--workload", u.workload.Name,
			"--http", p.state.address(u, "http"), "--tcp", p.state.address(u, "tcp"),
		}
		if p.state.Ledger {
			c.args = append(c.args, "--requests")
		}
	}
	return p.state.placed(u, c)
}
