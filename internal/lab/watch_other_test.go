//go:build !linux

package lab_test

import (
	"errors"

	"github.com/rogpeppe/go-internal/testscript"
)

func canCapture() error { return errors.New("packets can be captured on Linux only") }

type watcher struct{}

func (*watcher) close() {}

func (*mesh) watch(*testscript.TestScript, []string) error {
	return errors.New("packets can be captured on Linux only")
}
