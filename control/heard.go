package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/topology"
)

// recallGrace is how long after a start the first world waits for what peers said before: it is on disk, and read in a moment.
const recallGrace = 5 * time.Second

const maxHeardFile = 1 << 20

// heard is which peers have ever spoken: root fingerprint by cluster. It is kept on disk so that a control plane that starts again does
// not tell its proxies, in the moment before the peers' words are read again, that there are no peers.
type heard map[topology.ClusterName]string

func readHeard(path string) (heard, error) {
	data, err := atomicfile.Read(path, maxHeardFile)
	if errors.Is(err, fs.ErrNotExist) {
		return heard{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("control: peers heard: %w", err)
	}
	h := heard{}
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, fmt.Errorf("control: peers heard: %s: %w", path, err)
	}
	return h, nil
}

func writeHeard(path string, h heard) error {
	data, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return fmt.Errorf("control: peers heard: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("control: peers heard: %w", err)
	}
	return nil
}

// next returns who has been heard, by the views of now; awaited tells whether one that had spoken is silent still, and all whether each
// peer has spoken.
func (h heard) next(peers []ClusterPeer, views *federation.Views) (next heard, awaited, all bool) {
	next, all = heard{}, true
	for _, p := range peers {
		v := views.Cluster(p.Cluster)
		spoken := v != nil && v.Freshness != federation.Waiting
		before := h[p.Cluster] == p.RootFingerprint
		if spoken || before {
			next[p.Cluster] = p.RootFingerprint
		}
		awaited = awaited || before && !spoken
		all = all && spoken
	}
	return next, awaited, all
}

func (h heard) equal(o heard) bool { return maps.Equal(h, o) }
