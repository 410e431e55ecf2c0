// Package charts holds the Helm charts of the project, for the CLI to install from. They are the same files that helm and GitOps use.
package charts

import "embed"

// Files are the folders isthmus and isthmus-crds.
//
//go:embed all:isthmus all:isthmus-crds
var Files embed.FS
