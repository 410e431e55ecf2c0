package configstream

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// World is everything that control has to tell, to whomever it may concern. Immutable.
type World struct {
	revision uint64 // given by Server.Set

	shared   map[string]*entry               // seen by every program that may: bundles, gateways, clusters, exports
	owned    map[string]map[string]*entry    // seen by one receiver alone: by receiver, by key
	services map[topology.ServiceName]*entry // seen by those that subscribed
	withheld map[string]error                // by key: why it is not sent, and left as it is where it was sent before

	addresses map[netip.Addr]topology.ServiceName // of services: in the own cluster, and in the clusterset
	hosts     map[netip.Addr]hostOf               // of the copies of headless services
	self      topology.ClusterName                // whose own copies are pods like any other
}

// hostOf is whose copy has an address.
type hostOf struct {
	service topology.ServiceName
	cluster topology.ClusterName
}

// at returns the service that an address leads to.
func (w *World) at(a netip.Addr) (topology.ServiceName, bool) {
	if name, ok := w.addresses[a]; ok {
		return name, true
	}
	h, ok := w.hosts[a]
	return h.service, ok && h.cluster != w.self
}

// entry is one resource, ready to be sent.
type entry struct {
	resource *configv1.Resource
	version  string
	size     int
	reduced  *entry // what all but gateways get, when that differs
}

// versionSize is how many bytes of the SHA-256 of a body make its version.
const versionSize = 16

// NewWorld makes a World and computes the versions. The bodies of resources must not change after.
//
// A resource that clients would refuse (malformed, too large, a key that came before) is withheld: it is not sent, and where
// an earlier one was sent under that key, that one stays in force. One bad resource must not keep every other from
// the clients, and what is broken must not read as what was deleted.
func NewWorld(resources []*configv1.Resource) *World {
	w := &World{
		shared:   make(map[string]*entry),
		owned:    make(map[string]map[string]*entry),
		services: make(map[topology.ServiceName]*entry),
		withheld: make(map[string]error),

		addresses: make(map[netip.Addr]topology.ServiceName),
		hosts:     make(map[netip.Addr]hostOf),
	}
	taken := make(map[string]struct{}, len(resources))
	for _, r := range resources {
		key := r.GetKey()
		err := w.add(r, taken)
		if err != nil {
			w.withheld[key] = err
		}
		taken[key] = struct{}{}
	}
	return w
}

func (w *World) add(r *configv1.Resource, taken map[string]struct{}) error {
	key := r.GetKey()
	if _, ok := taken[key]; ok {
		w.drop(key)
		return errors.New("more than one resource has this key")
	}
	d, err := decode(r)
	if err != nil {
		return err
	}
	e, err := newEntry(r)
	if err != nil {
		return err
	}
	kind, rest, _ := strings.Cut(key, "/")
	switch kind {
	case kindService:
		w.services[d.service.Name] = e
		for _, a := range slices.Concat(d.service.ClusterIPs, d.service.ClusterSetIPs) {
			w.addresses[a] = d.service.Name
		}
		for i := range d.service.Hosts {
			for _, h := range d.service.Hosts[i].Hosts {
				for _, a := range h.IPs {
					w.hosts[a] = hostOf{d.service.Name, d.service.Hosts[i].Cluster}
				}
			}
		}
	case kindSelf:
		w.self = d.self.Cluster
		w.own(rest, key, e)
	case kindInbound:
		w.own(rest[:strings.LastIndexByte(rest, '/')], key, e)
	case kindCluster:
		if len(d.cluster.Gateways) > 0 {
			c := *d.cluster
			c.Gateways = leaving(c.Gateways)
			if e.reduced, err = newEntry(EncodeCluster(&c)); err != nil {
				return err
			}
		}
		w.shared[key] = e
	default:
		w.shared[key] = e
	}
	return nil
}

// leaving returns, by name alone, the gateways that drain: all that a sidecar needs to know of another cluster's, to leave them in time.
func leaving(gateways []topology.Gateway) []topology.Gateway {
	var out []topology.Gateway
	for _, g := range gateways {
		if g.Draining {
			out = append(out, topology.Gateway{ID: g.ID, Identity: g.Identity, Draining: true})
		}
	}
	return out
}

func (w *World) own(receiver, key string, e *entry) {
	if w.owned[receiver] == nil {
		w.owned[receiver] = make(map[string]*entry)
	}
	w.owned[receiver][key] = e
}

// drop takes back what was added under key.
func (w *World) drop(key string) {
	delete(w.shared, key)
	for _, m := range w.owned {
		delete(m, key)
	}
	if name, ok := serviceOf(key); ok {
		delete(w.services, name)
		maps.DeleteFunc(w.addresses, func(_ netip.Addr, of topology.ServiceName) bool { return of == name })
		maps.DeleteFunc(w.hosts, func(_ netip.Addr, h hostOf) bool { return h.service == name })
	}
}

func newEntry(r *configv1.Resource) (*entry, error) {
	bare := &configv1.Resource{Body: r.GetBody()}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	out := &configv1.Resource{Key: r.GetKey(), Version: sum[:versionSize], Body: r.GetBody()}
	size := proto.Size(out)
	if size > MaxResource {
		return nil, fmt.Errorf("%d bytes: want at most %d", size, MaxResource)
	}
	return &entry{resource: out, version: string(out.GetVersion()), size: size}, nil
}

// serviceOf returns the service that a key is of.
func serviceOf(key string) (topology.ServiceName, bool) {
	rest, ok := strings.CutPrefix(key, kindService+"/")
	if !ok {
		return topology.ServiceName{}, false
	}
	name, err := topology.ParseServiceName(rest)
	return name, err == nil
}

// Withheld returns, by key, why resources are not sent.
func (w *World) Withheld() map[string]error { return maps.Clone(w.withheld) }

// Resources returns all that is sent to somebody, with its version, ordered by key. Not to be changed.
func (w *World) Resources() []*configv1.Resource {
	var out []*configv1.Resource
	for _, e := range w.shared {
		out = append(out, e.resource)
	}
	for _, m := range w.owned {
		for _, e := range m {
			out = append(out, e.resource)
		}
	}
	for _, e := range w.services {
		out = append(out, e.resource)
	}
	slices.SortFunc(out, func(a, b *configv1.Resource) int { return strings.Compare(a.GetKey(), b.GetKey()) })
	return out
}
