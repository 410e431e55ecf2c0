package bundleendpoint

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/isthmus-mesh/isthmus/trust"
)

// Limits on a server that is somebody else's.
const (
	fetchTimeout     = 15 * time.Second // from name to last byte
	handshakeTimeout = 5 * time.Second
	maxHeaders       = 16 << 10 // bytes
	maxRedirects     = 3        // of HTTPSWeb; none of HTTPSSPIFFE
)

// Fetch gets the document that an endpoint serves, at most trust.MaxBundleSize of it. bundles are what an HTTPSSPIFFE server is verified with.
func Fetch(ctx context.Context, e Endpoint, bundles *trust.Bundles, now func() time.Time) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	client := &http.Client{CheckRedirect: followRedirect}
	transport := &http.Transport{
		TLSHandshakeTimeout: handshakeTimeout, MaxResponseHeaderBytes: maxHeaders, DisableKeepAlives: true,
		DisableCompression: true, // so that the limit is one
	}
	if e.Profile == HTTPSSPIFFE {
		// No proxy and no redirect: the server that is asked is the one that is known (SPIFFE Federation, 5.2.2.3).
		transport.TLSClientConfig = trust.ClientConfig(trust.TLS{Bundles: bundles, Policy: trust.AllowIDs(e.ID), Now: now})
		client.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
			return fmt.Errorf("it redirects to %s, which an %s endpoint may not", r.URL.Redacted(), HTTPSSPIFFE)
		}
	} else {
		transport.TLSClientConfig = trust.WebClientConfig(e.Roots)
		transport.TLSClientConfig.Time = now
		transport.Proxy = http.ProxyFromEnvironment
	}
	client.Transport = transport
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		if unknown, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return nil, fmt.Errorf("%w (are the roots right?)", unknown)
		}
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", e.URL, response.Status)
	}
	b, err := io.ReadAll(io.LimitReader(response.Body, trust.MaxBundleSize+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > trust.MaxBundleSize:
		return nil, fmt.Errorf("%s: a document of more than %d bytes", e.URL, trust.MaxBundleSize)
	}
	return b, nil
}

// followRedirect lets a web server say where else, over TLS, a few times.
func followRedirect(r *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case r.URL.Scheme != "https":
		return fmt.Errorf("it redirects to %s, which is not HTTPS", r.URL.Redacted())
	}
	return nil
}
