package folder

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
)

// statusFolder is where status is written, below the folder. The dot keeps it from being read.
const statusFolder = ".status"

// PutStatus writes what has changed to <dir>/.status: exports.yaml, imports.yaml, failoverpolicies.yaml and problems.yaml.
func (f *Folder) PutStatus(_ context.Context, s *control.Status) error {
	exports, err := manifest.Exports(s.Exports)
	if err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	imports, err := manifest.Imports(s.Imports)
	if err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	problems, err := manifest.Problems(s.Problems)
	if err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	policies, err := manifest.FailoverPolicies(s.Failover)
	if err != nil {
		return fmt.Errorf("folder: %w", err)
	}
	dir := filepath.Join(f.cfg.Dir, statusFolder)
	for name, data := range map[string][]byte{"failoverpolicies.yaml": policies, "exports.yaml": exports, "imports.yaml": imports, "problems.yaml": problems} {
		if last, ok := f.written[name]; ok && last == string(data) {
			continue
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) { //nolint:gosec // G301: as readable as the manifests beside it
			return fmt.Errorf("folder: status: %w", err)
		}
		// Whoever may write manifests must not have us write elsewhere.
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			return fmt.Errorf("folder: status: %s must be a folder, and no link: %w", dir, cmp.Or(err, os.ErrInvalid))
		}
		if err := atomicfile.Write(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("folder: status: %w", err)
		}
		f.written[name] = string(data)
	}
	return nil
}
