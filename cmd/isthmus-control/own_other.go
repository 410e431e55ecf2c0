//go:build !unix

package main

import "os"

// lock makes the state directory. There is no lock to be had here: running one control per state directory is the operator's business.
func lock(state string) (unlock func(), err error) {
	return func() {}, os.MkdirAll(state, 0o700)
}
