package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
)

// name is the plugin's file, and its type in network configurations.
const name = "isthmus-cni"

const (
	lookAgain = 5 * time.Second
	maxConf   = 1 << 20
	maxBinary = 256 << 20
)

// node is where the plugin is put, or taken away from.
type node struct {
	bin, conf string
	remove    bool
	log       *slog.Logger
}

// stay settles again and again until ctx ends. At the end all stays as it is: a node without the plugin would start Pods whose connections
// nobody captures.
func (n *node) stay(ctx context.Context) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	last := ""
	for {
		changed, err := n.settle()
		switch {
		case err != nil && err.Error() != last:
			n.log.ErrorContext(ctx, "not settled, trying on", "error", err)
			last = err.Error()
		case err == nil && (changed || last != ""):
			n.log.InfoContext(ctx, "settled", "removed", n.remove, "bin_dir", n.bin, "conf_dir", n.conf)
			last = ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// settle makes the node be as it should. A configuration must never name a plugin that isn't there: no Pod could start.
func (n *node) settle() (changed bool, err error) {
	if n.remove {
		if changed, err = n.configure(); err != nil {
			return changed, err
		}
		err = os.Remove(filepath.Join(n.bin, name))
		if errors.Is(err, fs.ErrNotExist) {
			return changed, nil
		}
		return true, err
	}
	copied, err := n.copy()
	if err != nil {
		return copied, err
	}
	changed, err = n.configure()
	return copied || changed, err
}

// copy puts this program into the plugin folder.
func (n *node) copy() (bool, error) {
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	program, err := atomicfile.Read(self, maxBinary)
	if err != nil {
		return false, err
	}
	path := filepath.Join(n.bin, name)
	if there, readErr := atomicfile.Read(path, maxBinary); readErr == nil && bytes.Equal(there, program) {
		return false, nil
	}
	return true, atomicfile.Write(path, program, 0o755)
}

// configure puts the plugin into the configuration that the runtime uses, behind all others, and takes it out of the rest; or out of all.
func (n *node) configure() (changed bool, err error) {
	files, err := filepath.Glob(filepath.Join(n.conf, "*.conflist"))
	if err != nil {
		return false, err
	}
	slices.Sort(files) // the runtime takes the first by name
	if len(files) == 0 && !n.remove {
		return false, fmt.Errorf("%s: no *.conflist there: the cluster's network is not there yet, or it is one that takes no further plugins", n.conf)
	}
	for i, file := range files {
		wrote, err := chain(file, i == 0 && !n.remove)
		changed = changed || wrote
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// chain puts the plugin at the end of a list, or takes it out. What else stands there is kept to the letter.
func chain(file string, in bool) (changed bool, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return false, err
	}
	raw, err := atomicfile.Read(file, maxConf)
	if err != nil {
		return false, err
	}
	var list map[string]json.RawMessage
	var plugins []json.RawMessage
	if err = json.Unmarshal(raw, &list); err == nil {
		err = json.Unmarshal(list["plugins"], &plugins)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	own, err := json.Marshal(map[string]any{"type": name, "capabilities": map[string]bool{annotationsCapability: true}})
	if err != nil {
		return false, err
	}
	want := slices.DeleteFunc(slices.Clone(plugins), func(p json.RawMessage) bool {
		var it struct {
			Type string `json:"type"`
		}
		return json.Unmarshal(p, &it) == nil && it.Type == name
	})
	if in {
		want = append(want, own)
	}
	if slices.EqualFunc(plugins, want, same) {
		return false, nil
	}
	if list["plugins"], err = json.Marshal(want); err != nil {
		return false, err
	}
	if raw, err = json.MarshalIndent(list, "", "  "); err != nil {
		return false, err
	}
	return true, atomicfile.Write(file, append(raw, '\n'), info.Mode().Perm())
}

// same reports whether two values say the same, however they are spaced.
func same(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
