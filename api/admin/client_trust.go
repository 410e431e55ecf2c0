package admin

import (
	"context"
	"net/http"
	"net/url"
)

// Trust asks whom the cluster trusts, and by what.
func (c *Client) Trust(ctx context.Context) (Trust, error) {
	return ask[Trust](ctx, c, http.MethodGet, "/v1/trust", nil)
}

// Bundle asks for the bundle document of a trust domain that the cluster trusts.
func (c *Client) Bundle(ctx context.Context, domain string) (BundleDocument, error) {
	return ask[BundleDocument](ctx, c, http.MethodGet, "/v1/trust/bundles/"+url.PathEscape(domain), nil)
}

// Rotate moves the rotation of the cluster's own root, and returns how it stands then.
func (c *Client) Rotate(ctx context.Context, r RotationRequest) (Rotation, error) {
	return ask[Rotation](ctx, c, http.MethodPost, "/v1/trust/rotation", r)
}

// Revoke ends trust in something, in this cluster and, for what is of its own domain, in its peers.
func (c *Client) Revoke(ctx context.Context, r Revocation) (Revocation, error) {
	return ask[Revocation](ctx, c, http.MethodPost, RevocationsPath, r)
}

// Unrevoke undoes the revocation of a subject.
func (c *Client) Unrevoke(ctx context.Context, subject string) error {
	_, err := ask[nothing](ctx, c, http.MethodDelete, RevocationsPath+"?"+url.Values{"subject": {subject}}.Encode(), nil)
	return err
}

// SVID asks the cluster's authority for an SVID.
func (c *Client) SVID(ctx context.Context, r SVIDRequest) (SVID, error) {
	return ask[SVID](ctx, c, http.MethodPost, "/v1/trust/svids", r)
}

// nothing is an answer of which only the status counts.
type nothing struct{}

// UnmarshalJSON takes whatever there is.
func (*nothing) UnmarshalJSON([]byte) error { return nil }
