// Package version says which build this is.
package version

import (
	"runtime"
	"runtime/debug"
)

// release is set by the linker for a release: -ldflags "-X …/internal/version.release=v1.2.3".
var release string

// Release returns the release that this is, v1.2.3, or "" where it is none.
func Release() string { return release }

// String returns the release, or what Go recorded of the build ("(devel) 1a2b3c4d dirty").
func String() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" {
		v = "(devel)"
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 8:
			revision = " " + s.Value[:8]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = " dirty"
		}
	}
	return v + revision + dirty
}

// Long returns the version, the Go release and the platform, for --version.
func Long() string {
	return String() + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
}
