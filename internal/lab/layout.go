package lab

import "path/filepath"

// The folders of a playground:
//
//	playground.json               what it is made of, and what was started
//	sockets/<cluster>.sock        admin sockets (elsewhere when the path would be too long)
//	sockets/<cluster>-<workload>.spiffe    where its sidecar serves the SPIFFE Workload API
//	<cluster>/manifests/          the cluster: drop manifests here
//	<cluster>/<process>/config.yaml
//	<cluster>/<process>/state/
//	<cluster>/<process>/log

// SocketOf returns where a cluster's control serves api/admin.
func (p *Playground) SocketOf(cluster string) string {
	return filepath.Join(p.state.Sockets, socketName(cluster))
}

// workloadSocket is where a sidecar serves the SPIFFE Workload API.
func (p *Playground) workloadSocket(u unit) string {
	return filepath.Join(p.state.Sockets, workloadSocketName(u.cluster, u.workload.Name))
}

func workloadSocketName(cluster, workload string) string { return cluster + "-" + workload + ".spiffe" }

// WorkloadAPIOf returns the socket of the SPIFFE Workload API of a workload, "eu/web".
func (p *Playground) WorkloadAPIOf(workload string) (string, error) {
	u, err := p.state.sidecarOf(workload)
	if err != nil {
		return "", err
	}
	return p.workloadSocket(u), nil
}

// ManifestsOf returns a cluster's folder of manifests.
func (p *Playground) ManifestsOf(cluster string) string {
	return filepath.Join(p.dir, cluster, "manifests")
}

func (p *Playground) folder(u unit) string     { return filepath.Join(p.dir, u.cluster, u.name) }
func (p *Playground) configFile(u unit) string { return filepath.Join(p.folder(u), "config.yaml") }
func (p *Playground) stateDir(u unit) string   { return filepath.Join(p.folder(u), "state") }
func (p *Playground) logFile(u unit) string    { return filepath.Join(p.folder(u), "log") }
func (p *Playground) tokenFile(u unit) string  { return filepath.Join(p.folder(u), "join-token") }

func (p *Playground) trustBundle(cluster string) string {
	return filepath.Join(p.stateDir(unit{cluster: cluster, name: "control"}), "trust-bundle.pem")
}
