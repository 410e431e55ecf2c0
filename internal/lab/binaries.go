package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Binaries says where the programs are. An empty field is looked for beside the running executable, then in PATH.
type Binaries struct {
	Isthmus string // the command itself; it also is the sample workload
	Control string
	Gateway string
	Sidecar string
	Capture string // needed with Netns
}

// BinariesIn returns the programs in one folder.
func BinariesIn(dir string) Binaries {
	return Binaries{
		Isthmus: filepath.Join(dir, "isthmus"),
		Control: filepath.Join(dir, string(Control)),
		Gateway: filepath.Join(dir, string(Gateway)),
		Sidecar: filepath.Join(dir, string(Sidecar)),
		Capture: filepath.Join(dir, string(Capture)),
	}
}

// check fails when a program can't be found.
func (b Binaries) check() error {
	for _, p := range []Program{Control, Gateway, Sidecar, App} {
		if _, err := b.path(p); err != nil {
			return err
		}
	}
	return nil
}

func (b Binaries) path(p Program) (string, error) {
	switch p {
	case Control:
		return locate(b.Control, string(Control))
	case Gateway:
		return locate(b.Gateway, string(Gateway))
	case Sidecar, Node:
		return locate(b.Sidecar, string(Sidecar))
	case Capture:
		return locate(b.Capture, string(Capture))
	case App:
		if b.Isthmus != "" {
			return b.Isthmus, nil
		}
		return os.Executable()
	default:
		return "", fmt.Errorf("no program %q", p)
	}
}

func locate(given, name string) (string, error) {
	if given != "" {
		return given, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if info, e := os.Stat(beside); e == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		return beside, nil
	}
	found, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) || err != nil {
		return "", fmt.Errorf("%s is neither beside %s nor in PATH; build it there (make build)", name, self)
	}
	return filepath.Abs(found)
}
