package lab

import (
	"fmt"
	"slices"
)

// MaxClusters bounds how many clusters a playground may have.
const MaxClusters = 16

// Spec says which clusters there are, and what runs in them.
type Spec struct {
	Clusters []Cluster `json:"clusters"`
}

// Cluster is one cluster of a Spec.
type Cluster struct {
	Name        string     `json:"name"`
	TrustDomain string     `json:"trust_domain"`
	Region      string     `json:"region"`
	Zone        string     `json:"zone"`
	Gateways    int        `json:"gateways"`
	Workloads   []Workload `json:"workloads"`
}

// Workload is one copy of the sample application, with its sidecar.
type Workload struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	App       string `json:"app"` // label and Service name; also the service account
	Exported  bool   `json:"exported,omitempty"`
}

// Sample returns the mesh that everybody starts with: eu, us, ap, then c4, c5 and so on. Cluster eu has the caller, shop/web;
// each of the others has a copy of shop/checkout and exports it.
func Sample(clusters int) (Spec, error) {
	if clusters < 2 || clusters > MaxClusters {
		return Spec{}, fmt.Errorf("a playground has 2 to %d clusters, not %d", MaxClusters, clusters)
	}
	names := []string{"eu", "us", "ap"}
	regions := []string{"europe", "america", "asia"}
	var spec Spec
	for i := range clusters {
		name, region := fmt.Sprintf("c%d", i+1), fmt.Sprintf("region-%d", i+1)
		if i < len(names) {
			name, region = names[i], regions[i]
		}
		c := Cluster{Name: name, TrustDomain: name + ".isthmus.test", Region: region, Zone: name + "-a", Gateways: 2}
		if i == 0 {
			c.Workloads = []Workload{{Namespace: "shop", Name: "web", App: "web"}}
		} else {
			c.Workloads = []Workload{{Namespace: "shop", Name: "checkout-0", App: "checkout", Exported: true}}
		}
		spec.Clusters = append(spec.Clusters, c)
	}
	return spec, nil
}

// Shop is Sample, and the caller's own cluster has a copy, too: calls stay at home as long as they can. It is what a playground has that is kept.
func Shop(clusters int) (Spec, error) {
	spec, err := Sample(clusters)
	if err == nil {
		home := &spec.Clusters[0]
		home.Workloads = append(home.Workloads, Workload{Namespace: "shop", Name: "checkout-0", App: "checkout", Exported: true})
	}
	return spec, err
}

func (s Spec) check() error {
	if n := len(s.Clusters); n == 0 || n > MaxClusters {
		return fmt.Errorf("a playground has 1 to %d clusters, not %d", MaxClusters, n)
	}
	var seen []string
	for _, c := range s.Clusters {
		if c.Name == "" || slices.Contains(seen, c.Name) {
			return fmt.Errorf("cluster name %q is empty or used twice", c.Name)
		}
		seen = append(seen, c.Name)
	}
	return nil
}

// Cluster returns the named cluster.
func (s Spec) Cluster(name string) (Cluster, bool) {
	i := slices.IndexFunc(s.Clusters, func(c Cluster) bool { return c.Name == name })
	if i < 0 {
		return Cluster{}, false
	}
	return s.Clusters[i], true
}

// Program is a kind of process.
type Program string

// The programs.
const (
	Control Program = "isthmus-control"
	Gateway Program = "isthmus-gateway"
	Node    Program = "node-proxy" // isthmus-sidecar in node mode
	Sidecar Program = "isthmus-sidecar"
	Capture Program = "isthmus-capture" // with Netns; it ends once its rules are in force
	App     Program = "app"             // isthmus playground workload
)

// unit is one process that the Spec asks for.
type unit struct {
	cluster  string
	name     string // unique in the cluster; also the folder's name
	program  Program
	workload Workload // of App and Sidecar
}

func (u unit) id() string { return u.cluster + "/" + u.name }

// units lists a cluster's processes; the control comes first.
func (c Cluster) units() []unit {
	out := []unit{{cluster: c.Name, name: "control", program: Control}}
	for i := range c.Gateways {
		out = append(out, unit{cluster: c.Name, name: fmt.Sprintf("gateway-%d", i), program: Gateway})
	}
	out = append(out, unit{cluster: c.Name, name: "node-0", program: Node})
	for _, w := range c.Workloads {
		out = append(out,
			unit{cluster: c.Name, name: w.Name + "-app", program: App, workload: w},
			unit{cluster: c.Name, name: w.Name + "-sidecar", program: Sidecar, workload: w})
	}
	return out
}

// ports lists the ports that a program listens on, by purpose.
func (p Program) ports() []string {
	switch p {
	case Control:
		return []string{"grpc", "bus", "admin"}
	case Gateway:
		return []string{"streams", "quic", "admin"}
	case Node:
		return []string{"inbound", "proxy", "dns", "admin"}
	case Sidecar:
		return []string{"inbound", "proxy", "dns", "admin", "udp"}
	case App:
		return []string{"http", "tcp"}
	default:
		return nil
	}
}

// exported returns the first service that a cluster exports, "name.namespace"; empty when none does.
func (s Spec) exported() string {
	for _, c := range s.Clusters {
		for _, w := range c.Workloads {
			if w.Exported {
				return w.App + "." + w.Namespace
			}
		}
	}
	return ""
}
