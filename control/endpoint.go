package control

import (
	"context"
	"errors"
	"net"

	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

// FederationEndpoint is where the own trust bundle is served, for other implementations of SPIFFE: to everybody, it is public.
type FederationEndpoint struct {
	Listener net.Listener // required
	// Web is who the server is by its DNS name (profile https_web). nil: it is known by control's SVID (https_spiffe).
	Web *trust.WebFiles
}

// serveFederationEndpoint serves the own bundle until ctx ends.
func (c *Control) serveFederationEndpoint(ctx context.Context) error {
	e := c.cfg.FederationEndpoint
	config := trust.PublicServerConfig(c.identity, "http/1.1")
	if e.Web != nil {
		config = e.Web.Config()
	}
	return c.serveStrangers(ctx, "federation endpoint", e.Listener, config, bundleendpoint.Handler(c.bundleDocument))
}

// bundleDocument returns the own bundle as a SPIFFE bundle document, as peers are told of it: under the same number.
func (c *Control) bundleDocument() ([]byte, error) {
	bundle, sequence := c.member.OwnBundle()
	if sequence == 0 {
		return nil, errors.New("the bundle has no number yet") // for the first moments
	}
	return trust.MarshalBundle(c.cfg.Domain, bundle, sequence, bundleendpoint.RefreshHint)
}
