// Package bundleendpoint serves a trust domain's bundle to whoever asks, and follows those of others: the SPIFFE federation endpoint, by
// which another implementation of SPIFFE federates with us without our software.
//
// isthmus-control serves its own domain's ([Handler]) and follows those that the operator names ([Follower]).
//
// What holds for what is followed: a document comes from who the operator said, by SPIFFE ID or by DNS name; it is read strictly
// ([trust.ParseBundle]); its sequence never goes back, and one sequence never means two sets of keys, also over restarts. What is refused
// leaves the last good bundle in force.
//
// Concurrency: Follower is safe for concurrent use; Run has a child for each domain, and waits for all.
//
// Standard: "SPIFFE Federation" and "SPIFFE Trust Domain and Bundle" (github.com/spiffe/spiffe/standards).
package bundleendpoint

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// RefreshHint is how often others are asked to look at our document.
const RefreshHint = 5 * time.Minute

// Profile is how an endpoint is known.
type Profile string

// The profiles of the standard (SPIFFE Federation, section 5.2).
const (
	HTTPSWeb    Profile = "https_web"    // by its DNS name, with roots of the web
	HTTPSSPIFFE Profile = "https_spiffe" // by its SPIFFE ID
)

// Endpoint is where another domain's bundle is served, and how the server is known.
type Endpoint struct {
	URL     string
	Profile Profile
	ID      spiffeid.ID         // of HTTPSSPIFFE: who serves
	Roots   []*x509.Certificate // of HTTPSWeb: who vouches for the DNS name; none: the system's
}

// maxURL bounds an endpoint's URL, in bytes.
const maxURL = 2048

// Check says what is wrong with an endpoint.
func (e *Endpoint) Check() error {
	u, err := url.Parse(e.URL)
	switch {
	case err != nil || len(e.URL) > maxURL || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || u.Opaque != "":
		return fmt.Errorf("url: %q: want https://host[:port][/path], at most %d bytes", e.URL, maxURL)
	case e.Profile != HTTPSWeb && e.Profile != HTTPSSPIFFE:
		return fmt.Errorf("profile: %q: want %s or %s", e.Profile, HTTPSWeb, HTTPSSPIFFE)
	case e.Profile == HTTPSSPIFFE && e.ID.Path() == "":
		return errors.New("spiffeID: is missing: whom the server of an " + string(HTTPSSPIFFE) + " endpoint is known as")
	case e.Profile == HTTPSWeb && !e.ID.IsZero():
		return errors.New("spiffeID: of no effect with " + string(HTTPSWeb))
	case e.Profile == HTTPSSPIFFE && len(e.Roots) > 0:
		return errors.New("caBundle: of no effect with " + string(HTTPSSPIFFE))
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("url: %q: its port is none", e.URL)
		}
	}
	return nil
}

// Handler serves what document returns, at every path: the domain's bundle document as it is now. An error is not for everybody: whoever
// gives the document logs it.
func Handler(document func() ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "want GET", http.StatusMethodNotAllowed)
			return
		}
		b, err := document()
		if err != nil {
			http.Error(w, "there is no bundle now", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b) // the client went away
	})
}
