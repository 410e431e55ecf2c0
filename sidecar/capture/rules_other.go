//go:build !linux

package capture

import "errors"

var errUnsupported = errors.New("capture needs Linux")

// Install is for Linux only.
func Install(r Rules) error {
	if err := r.Check(); err != nil {
		return err
	}
	return errUnsupported
}

// Remove is for Linux only.
func Remove() error { return errUnsupported }
