package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/ledger"
)

// Status is a playground at a glance. Its JSON is what `isthmus playground status -o json` prints: fields are added, never
// changed.
type Status struct {
	Dir      string          `json:"dir"`
	Running  bool            `json:"running"` // every process runs
	Clusters []ClusterStatus `json:"clusters"`
}

// ClusterStatus is one cluster of a playground.
type ClusterStatus struct {
	Name        string          `json:"name"`
	Region      string          `json:"region"`
	TrustDomain string          `json:"trust_domain"`
	Manifests   string          `json:"manifests"` // folder
	Socket      string          `json:"socket"`    // of the control's admin API
	Processes   []ProcessStatus `json:"processes"`
	Links       []LinkStatus    `json:"links"`
	// Problems are what the control, when it answers, says of the manifests and of itself; or why it doesn't answer.
	Problems []string `json:"problems,omitempty"`
}

// ProcessStatus is one process of a cluster.
type ProcessStatus struct {
	Name    string         `json:"name"` // as `isthmus playground break` takes it, after "<cluster>/"
	Program Program        `json:"program"`
	Running bool           `json:"running"`
	Pid     int            `json:"pid,omitempty"` // while it runs
	Host    string         `json:"host"`          // its address
	Ports   map[string]int `json:"ports"`         // on it, by purpose
	Log     string         `json:"log"`
	Ready   bool           `json:"ready"`
	Missing string         `json:"missing,omitempty"` // what it says it waits for
}

// LinkStatus is what one gateway says of its links to another cluster.
type LinkStatus struct {
	Gateway     string        `json:"gateway"`
	Cluster     string        `json:"cluster"`
	State       string        `json:"state"` // up, down, unknown
	Connections int           `json:"connections"`
	RTT         time.Duration `json:"rtt_ns"`
	Detail      string        `json:"detail,omitempty"`
}

// Status asks every process how it is. It fails only when ctx ends; what doesn't answer is in the answer.
func (p *Playground) Status(ctx context.Context) (Status, error) {
	st := Status{Dir: p.dir, Running: true, Clusters: []ClusterStatus{}}
	for _, c := range p.state.Spec.Clusters {
		cs := p.clusterStatus(ctx, c)
		for _, ps := range cs.Processes {
			st.Running = st.Running && ps.Running
		}
		st.Clusters = append(st.Clusters, cs)
	}
	if ctx.Err() != nil {
		return st, context.Cause(ctx)
	}
	return st, nil
}

// NotReady asks what the targets name, or everything, and returns which of those that run are not ready, each with what it misses.
func (p *Playground) NotReady(ctx context.Context, targets ...string) ([]string, error) {
	units, err := p.state.resolve(targets)
	if err != nil {
		return nil, err
	}
	missing := make([]string, len(units))
	var all sync.WaitGroup
	for i, u := range units {
		all.Go(func() {
			if s := p.processStatus(ctx, u); s.Running && !s.Ready {
				missing[i] = u.id() + ": " + s.Missing
			}
		})
	}
	all.Wait()
	return slices.DeleteFunc(missing, func(s string) bool { return s == "" }), context.Cause(ctx)
}

func (p *Playground) clusterStatus(ctx context.Context, c Cluster) ClusterStatus {
	cs := ClusterStatus{
		Name: c.Name, Region: c.Region, TrustDomain: c.TrustDomain, Manifests: p.ManifestsOf(c.Name),
		Socket: p.SocketOf(c.Name), Links: []LinkStatus{},
	}
	for _, u := range c.units() {
		cs.Processes = append(cs.Processes, p.processStatus(ctx, u))
	}
	cs.Links, cs.Problems = p.controlView(ctx, c)
	return cs
}

func (p *Playground) processStatus(ctx context.Context, u unit) ProcessStatus {
	ps := ProcessStatus{Name: u.name, Program: u.program, Host: p.state.hostOf(u), Ports: map[string]int{}, Log: p.logFile(u), Running: p.alive(u)}
	for _, purpose := range u.program.ports() {
		ps.Ports[purpose] = p.state.port(u, purpose)
	}
	if !ps.Running {
		return ps
	}
	ps.Pid = p.state.Running[u.id()].Pid
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := ready(ctx, p.state.near(u), p.readyURL(u)); err != nil {
		ps.Missing = err.Error()
	} else {
		ps.Ready = true
	}
	return ps
}

// controlView asks the control for the links of its gateways. One that is dead leaves them unknown.
func (p *Playground) controlView(ctx context.Context, c Cluster) (links []LinkStatus, problems []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	st, err := admin.NewClient(p.SocketOf(c.Name)).Status(ctx)
	if err != nil {
		problems = append(problems, "links are unknown: "+err.Error())
	}
	for _, m := range st.Manifests.Problems {
		if m.Note {
			continue
		}
		problems = append(problems, fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Reason))
	}
	for _, o := range p.state.Spec.Clusters {
		if o.Name == c.Name {
			continue
		}
		for _, u := range c.units() {
			if u.program != Gateway {
				continue
			}
			l := LinkStatus{Gateway: u.name, Cluster: o.Name, State: "unknown"}
			for _, said := range st.Links {
				if said.Gateway == u.name && said.Cluster == o.Name {
					l.State, l.Connections, l.RTT, l.Detail = said.State, said.Connections, said.RTT, said.Detail
				}
			}
			if !p.alive(u) {
				l = LinkStatus{Gateway: u.name, Cluster: o.Name, State: "down", Detail: u.name + " is not running"}
			}
			links = append(links, l)
		}
	}
	return links, problems
}

// ProxyOf returns the address of the outbound HTTP proxy of a workload, "eu/web": what http_proxy is set to there.
func (p *Playground) ProxyOf(workload string) (string, error) {
	return p.sidecarAddress(workload, "proxy")
}

// DatagramsOf returns the address where a workload's sidecar takes datagrams for the sample's service, port 7000.
func (p *Playground) DatagramsOf(workload string) (string, error) {
	return p.sidecarAddress(workload, "udp")
}

// DNSOf returns the address where a workload's sidecar resolves names of the clusterset.
func (p *Playground) DNSOf(workload string) (string, error) { return p.sidecarAddress(workload, "dns") }

func (p *Playground) sidecarAddress(workload, purpose string) (string, error) {
	u, err := p.state.sidecarOf(workload)
	if err != nil {
		return "", err
	}
	return p.state.address(u, purpose), nil
}

// Ledger returns what the sidecars and applications have noted of requests.
func (p *Playground) Ledger() ([]ledger.Entry, error) {
	var all []ledger.Entry
	for _, u := range p.state.all() {
		if u.program != Sidecar && u.program != App {
			continue
		}
		f, err := os.Open(p.logFile(u))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("playground: %w", err)
		}
		entries, err := ledger.ReadLog(f, u.cluster, u.workload.Name)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", u.id(), err)
		}
		all = append(all, entries...)
	}
	return all, nil
}

// LogsOf returns the log files of what the targets name, by "<cluster>/<process>", in order.
func (p *Playground) LogsOf(targets ...string) (names, files []string, err error) {
	units, err := p.state.resolve(targets)
	if err != nil {
		return nil, nil, err
	}
	for _, u := range units {
		names = append(names, u.id())
		files = append(files, p.logFile(u))
	}
	return names, files, nil
}

// DialerOf returns how connections are made from where a workload is; nil: from this machine itself.
func (p *Playground) DialerOf(workload string) func(ctx context.Context, network, address string) (net.Conn, error) {
	u, err := p.state.sidecarOf(workload)
	if err != nil || p.state.Network == nil {
		return nil
	}
	return p.state.dialer(u)
}

// AdminOf returns the address of the admin listener of a workload's sidecar.
func (p *Playground) AdminOf(workload string) (string, error) {
	return p.sidecarAddress(workload, "admin")
}
