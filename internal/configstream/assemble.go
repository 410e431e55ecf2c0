package configstream

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Bundles is what is accepted of each trust domain.
type Bundles map[spiffeid.TrustDomain]BundleData

// Decode makes the snapshot and the bundles that a program gets from resources. It takes all or nothing: a malformed
// resource, or two that contradict each other, is an error. Resources of an unknown kind are passed over.
func Decode(resources []*configv1.Resource) (*topology.Snapshot, Bundles, error) {
	values := make([]decoded, 0, len(resources))
	keys := make(map[string]struct{}, len(resources))
	for _, r := range resources {
		d, err := decode(r)
		if err != nil {
			return nil, nil, fmt.Errorf("configstream: %w", err)
		}
		if _, ok := keys[r.GetKey()]; ok {
			return nil, nil, fmt.Errorf("configstream: %w %q: listed twice", errMalformed, clip(r.GetKey()))
		}
		keys[r.GetKey()] = struct{}{}
		values = append(values, d)
	}
	snapshot, bundles, err := assemble(slices.Values(values))
	if err != nil {
		return nil, nil, fmt.Errorf("configstream: %w", err)
	}
	return snapshot, bundles, nil
}

// assemble puts decoded resources together. Their keys differ.
func assemble(values iter.Seq[decoded]) (*topology.Snapshot, Bundles, error) {
	var spec topology.SnapshotSpec
	bundles := make(Bundles)
	selves := 0
	for d := range values {
		switch {
		case d.self != nil:
			selves++
			spec.Self = *d.self
		case d.bundle != nil:
			bundles[d.domain] = *d.bundle
		case d.gateway != nil:
			spec.Gateways = append(spec.Gateways, *d.gateway)
		case d.cluster != nil:
			spec.Clusters = append(spec.Clusters, d.cluster)
		case d.service != nil:
			spec.Services = append(spec.Services, d.service)
		case d.export != nil:
			spec.Exports = append(spec.Exports, d.export)
		case d.inbound != nil:
			spec.Inbounds = append(spec.Inbounds, d.inbound)
		}
	}
	if selves > 1 {
		return nil, nil, errors.New("the resources of more than one receiver")
	}
	slices.SortFunc(spec.Gateways, func(a, b topology.Gateway) int { return cmp.Compare(a.ID, b.ID) })
	return topology.NewSnapshot(spec), bundles, nil
}
