//go:build !linux

package capture

import (
	"context"
	"errors"
	"log/slog"
)

var errUnsupported = errors.New("capture needs Linux")

// Install is for Linux only.
func Install(r Rules) error {
	if err := r.Check(); err != nil {
		return err
	}
	return errUnsupported
}

// InstallIn is for Linux only.
func InstallIn(_ string, r Rules) error { return Install(r) }

// Remove is for Linux only.
func Remove() error { return errUnsupported }

// Stay is for Linux only.
func Stay(_ context.Context, r Rules, _ string, _ *slog.Logger) error { return Install(r) }
