package lab

import (
	"fmt"

	"sigs.k8s.io/yaml"
)

// The configuration files of the programs, as their own packages read them (docs/reference).

type logConfig struct {
	Level  string `json:"level"`
	Format string `json:"format"`
}

type controlConfig struct {
	Cluster     string       `json:"cluster"`
	TrustDomain string       `json:"trustDomain"`
	Region      string       `json:"region"`
	Zone        string       `json:"zone"`
	Manifests   string       `json:"manifests"`
	State       string       `json:"state"`
	Listen      string       `json:"listen"`
	Bus         controlBus   `json:"bus"`
	Admin       controlAdmin `json:"admin"`
	NodeProxies []string     `json:"nodeProxies,omitempty"`
	Log         logConfig    `json:"log"`
}

type controlBus struct {
	Listen    string   `json:"listen"`
	Advertise []string `json:"advertise"`
}

type controlAdmin struct {
	Socket string `json:"socket"`
	Listen string `json:"listen"`
}

type gatewayConfig struct {
	ID              string           `json:"id"`
	Control         string           `json:"control"`
	TrustDomain     string           `json:"trustDomain"`
	State           string           `json:"state"`
	JoinTokenFile   string           `json:"joinTokenFile"`
	TrustBundleFile string           `json:"trustBundleFile"`
	Listen          gatewayListen    `json:"listen"`
	Advertise       gatewayAdvertise `json:"advertise"`
	Log             logConfig        `json:"log"`
}

type gatewayListen struct {
	Streams string `json:"streams"`
	QUIC    string `json:"quic"`
	Admin   string `json:"admin"`
}

type gatewayAdvertise struct {
	Streams string `json:"streams"`
	QUIC    string `json:"quic"`
}

type sidecarConfig struct {
	Workload        string           `json:"workload,omitempty"`
	Node            string           `json:"node,omitempty"`
	Control         string           `json:"control"`
	TrustDomain     string           `json:"trustDomain"`
	State           string           `json:"state"`
	JoinTokenFile   string           `json:"joinTokenFile"`
	TrustBundleFile string           `json:"trustBundleFile"`
	Listen          sidecarListen    `json:"listen"`
	Advertise       sidecarAdvertise `json:"advertise"`
	Log             logConfig        `json:"log"`
}

type sidecarListen struct {
	Inbound string `json:"inbound"`
	Proxy   string `json:"proxy"`
	DNS     string `json:"dns"`
	Admin   string `json:"admin"`
}

type sidecarAdvertise struct {
	Inbound string `json:"inbound"`
}

// config renders the configuration file of a program; nil for one that has none.
func (p *Playground) config(u unit) ([]byte, error) {
	c, ok := p.state.Spec.Cluster(u.cluster)
	if !ok {
		return nil, fmt.Errorf("%s: %w", u.id(), ErrNoTarget)
	}
	at := func(purpose string) string { return p.state.address(u, purpose) }
	control := p.state.address(unit{cluster: u.cluster, name: "control"}, "grpc")
	logs := logConfig{Level: "info", Format: "text"}
	var file any
	switch u.program {
	case Control:
		file = controlConfig{
			Cluster: c.Name, TrustDomain: c.TrustDomain, Region: c.Region, Zone: c.Zone,
			Manifests: p.ManifestsOf(c.Name), State: p.stateDir(u), Listen: at("grpc"),
			Bus:         controlBus{Listen: at("bus"), Advertise: []string{"tls://" + at("bus")}},
			Admin:       controlAdmin{Socket: p.SocketOf(c.Name), Listen: at("admin")},
			NodeProxies: []string{"node-0"}, Log: logs,
		}
	case Gateway:
		file = gatewayConfig{
			ID: u.name, Control: control, TrustDomain: c.TrustDomain, State: p.stateDir(u),
			JoinTokenFile: p.tokenFile(u), TrustBundleFile: p.trustBundle(c.Name),
			Listen:    gatewayListen{Streams: at("streams"), QUIC: at("quic"), Admin: at("admin")},
			Advertise: gatewayAdvertise{Streams: at("streams"), QUIC: at("quic")},
			Log:       logs,
		}
	case Node, Sidecar:
		s := sidecarConfig{
			Control: control, TrustDomain: c.TrustDomain, State: p.stateDir(u),
			JoinTokenFile: p.tokenFile(u), TrustBundleFile: p.trustBundle(c.Name),
			Listen:    sidecarListen{Inbound: at("inbound"), Proxy: at("proxy"), DNS: at("dns"), Admin: at("admin")},
			Advertise: sidecarAdvertise{Inbound: at("inbound")},
			Log:       logs,
		}
		if u.program == Node {
			s.Node = u.name
		} else {
			s.Workload = u.workload.Namespace + "/" + u.workload.Name
		}
		file = s
	default:
		return nil, nil
	}
	return yaml.Marshal(file)
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
	}
	return c, nil
}
