package lab

import (
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/wan"
)

// openSite opens the device by which a site's packets come and go.
func openSite(name, device, path, prefix string) (wan.Site, error) {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return wan.Site{}, err
	}
	f, err := wan.Open(device, path)
	if err != nil {
		return wan.Site{}, err
	}
	return wan.Site{Name: name, Prefixes: []netip.Prefix{p}, Device: f}, nil
}
