//go:build !linux

package lab

import (
	"github.com/isthmus-mesh/isthmus/internal/netns"
	"github.com/isthmus-mesh/isthmus/internal/wan"
)

func openSite(string, string, string, string) (wan.Site, error) {
	return wan.Site{}, netns.ErrUnavailable
}
