package bundleendpoint

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust"
)

// theirWatcher is go-spiffe's BundleWatcher.
type theirWatcher struct {
	updates chan *spiffebundle.Bundle
	errs    chan error
}

func (w theirWatcher) NextRefresh(time.Duration) time.Duration { return 5 * time.Millisecond }
func (w theirWatcher) OnUpdate(b *spiffebundle.Bundle)         { w.updates <- b }
func (w theirWatcher) OnError(err error) {
	select {
	case w.errs <- err:
	default:
	}
}

// TestTheyFollowUs: go-spiffe's client follows what we serve, in both profiles.
func TestTheyFollowUs(t *testing.T) {
	for _, profile := range []Profile{HTTPSSPIFFE, HTTPSWeb} {
		t.Run(string(profile), func(t *testing.T) {
			us := newDomain(t, ours)
			config := trust.PublicServerConfig(us.identity, "http/1.1")
			option := federation.WithSPIFFEAuth(x509bundle.FromX509Authorities(ours, us.authority.Roots()), us.id)
			if profile == HTTPSWeb {
				root := newWebRoot(t)
				chain, key := root.files(t, t.TempDir())
				files, err := trust.OpenWebFiles(chain, key, nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				config = files.Config()
				option = federation.WithWebPKIRoots(trust.WebClientConfig(append(us.authority.Roots(), root.cert)).RootCAs)
			}
			url := serve(t, config, Handler(us.document))
			ctx, cancel := context.WithCancel(t.Context())
			w := theirWatcher{make(chan *spiffebundle.Bundle, 10), make(chan error, 1)}
			done := make(chan error, 1)
			go func() { done <- federation.WatchBundle(ctx, ours, url, w, option) }()
			next := func(sequence uint64, roots int) {
				t.Helper()
				select {
				case b := <-w.updates:
					n, _ := b.SequenceNumber()
					hint, _ := b.RefreshHint()
					if n != sequence || len(b.X509Authorities()) != roots || len(b.JWTAuthorities()) != 1 || hint != RefreshHint {
						t.Errorf("got sequence %d, %d roots, hint %s", n, len(b.X509Authorities()), hint)
					}
				case err := <-w.errs:
					t.Errorf("go-spiffe: %v", err)
				case <-time.After(30 * time.Second):
					t.Error("nothing was told")
				}
			}
			next(1, 1)
			us.rotate(2)
			next(2, 2)
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}

// TestWeFollowThem: we follow what go-spiffe's handler serves, in both profiles.
func TestWeFollowThem(t *testing.T) {
	for _, profile := range []Profile{HTTPSSPIFFE, HTTPSWeb} {
		t.Run(string(profile), func(t *testing.T) {
			them := newDomain(t, theirs)
			initial := them.doc()
			bundle, err := spiffebundle.Parse(theirs, initial)
			if err != nil {
				t.Fatal(err)
			}
			h, err := federation.NewHandler(theirs, bundle)
			if err != nil {
				t.Fatal(err)
			}
			d := Domain{Name: theirs, Endpoint: Endpoint{Profile: profile}}
			if profile == HTTPSWeb {
				root := newWebRoot(t)
				chain, key := root.files(t, t.TempDir())
				files, e := trust.OpenWebFiles(chain, key, nil, nil)
				if e != nil {
					t.Fatal(e)
				}
				d.Endpoint.Roots = append(d.Endpoint.Roots, root.cert)
				d.Endpoint.URL = serve(t, files.Config(), h)
			} else {
				d.Initial, d.Endpoint.ID = initial, them.id
				d.Endpoint.URL = serve(t, trust.PublicServerConfig(them.identity, "http/1.1"), h)
			}
			if err = d.Endpoint.Check(); err != nil {
				t.Fatal(err)
			}
			f := follower(t, newMemStore())
			f.Set([]Domain{d})
			waitFor(t, f, func(s State) bool { return s.Freshness == Fresh && s.Sequence == 1 })
			them.rotate(7)
			next, err := spiffebundle.Parse(theirs, them.doc())
			if err != nil {
				t.Fatal(err)
			}
			bundle.SetX509Authorities(next.X509Authorities())
			bundle.SetSequenceNumber(7)
			f.Set(nil) // asked anew at once, as it is at its time
			f.Set([]Domain{d})
			waitFor(t, f, func(s State) bool { return s.Freshness == Fresh && s.Sequence == 7 && len(s.Bundle.Authorities) == 2 })
		})
	}
}

// follower runs one for a test.
func follower(t *testing.T, store Store, edit ...func(*FollowerConfig)) *Follower {
	t.Helper()
	cfg := FollowerConfig{Store: store}
	for _, e := range edit {
		e(&cfg)
	}
	f, err := NewFollower(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// waitFor waits until the one domain that is followed is in a state.
func waitFor(t *testing.T, f *Follower, is func(State) bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		changed := f.Changed()
		states := f.States()
		if len(states) == 1 && is(states[0]) {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("never: %+v", states)
		}
	}
}

// TestFetchRefused: who is asked must be who the operator said, and must not send us elsewhere or without end.
func TestFetchRefused(t *testing.T) {
	them, stranger := newDomain(t, theirs), newDomain(t, ours)
	bundles := trust.NewBundles()
	bundles.Set(theirs, trust.Bundle{Authorities: them.authority.Roots()})
	bundles.Set(ours, trust.Bundle{Authorities: stranger.authority.Roots()})
	root, otherRoot := newWebRoot(t), newWebRoot(t)
	chain, key := root.files(t, t.TempDir())
	files, err := trust.OpenWebFiles(chain, key, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	say := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
	}
	asSPIFFE := trust.PublicServerConfig(them.identity, "http/1.1")
	good := serve(t, files.Config(), say("good"))
	plain := httptest.NewServer(say("plain"))
	defer plain.Close()
	old := files.Config()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	spiffe := func(url string) Endpoint { return Endpoint{URL: url, Profile: HTTPSSPIFFE, ID: them.id} }
	web := func(url string) Endpoint {
		e := Endpoint{URL: url, Profile: HTTPSWeb}
		e.Roots = append(e.Roots, root.cert)
		return e
	}
	gate, err := trust.GatewayID(theirs, "g")
	if err != nil {
		t.Fatal(err)
	}
	other := spiffe(serve(t, asSPIFFE, say("x")))
	other.ID = gate
	revoked := trust.NewBundles()
	svid, err := them.identity.SVID()
	if err != nil {
		t.Fatal(err)
	}
	revoked.Set(theirs, trust.Bundle{Authorities: them.authority.Roots(), Revoked: map[[32]byte]struct{}{trust.Fingerprint(svid.Certificates[0]): {}}})
	untrusted := web(good)
	untrusted.Roots = untrusted.Roots[:0:0]
	untrusted.Roots = append(untrusted.Roots, otherRoot.cert)
	for what, c := range map[string]struct {
		e       Endpoint
		bundles *trust.Bundles
		want    string
	}{
		"web":                    {web(good), nil, ""},
		"web, redirected once":   {web(serve(t, files.Config(), http.RedirectHandler(good, http.StatusFound))), nil, ""},
		"web, other roots":       {untrusted, nil, "are the roots right?"},
		"web, to plain text":     {web(serve(t, files.Config(), http.RedirectHandler(plain.URL, http.StatusFound))), nil, "not HTTPS"},
		"web, round in circles":  {web(serve(t, files.Config(), http.RedirectHandler("/", http.StatusFound))), nil, "more than 3 redirects"},
		"web, TLS 1.1":           {web(serve(t, old, say("x"))), nil, "protocol version"},
		"web, too much":          {web(serve(t, files.Config(), say(strings.Repeat("x", trust.MaxBundleSize+1)))), nil, "more than"},
		"web, not found":         {web(serve(t, files.Config(), http.NotFoundHandler())), nil, "404"},
		"web, by an SVID":        {web(serve(t, asSPIFFE, say("x"))), nil, "are the roots right?"},
		"spiffe":                 {spiffe(serve(t, asSPIFFE, say("x"))), bundles, ""},
		"spiffe, redirected":     {spiffe(serve(t, asSPIFFE, http.RedirectHandler(good, http.StatusFound))), bundles, "may not"},
		"spiffe, nothing known":  {spiffe(serve(t, asSPIFFE, say("x"))), trust.NewBundles(), "unknown_domain"},
		"spiffe, another ID":     {other, bundles, "not_allowed"},
		"spiffe, another domain": {spiffe(serve(t, trust.PublicServerConfig(stranger.identity, "http/1.1"), say("x"))), bundles, "not_allowed"},
		"spiffe, of the web":     {spiffe(good), bundles, "bad_svid"},
		"spiffe, revoked":        {spiffe(serve(t, asSPIFFE, say("x"))), revoked, "revoked"},
	} {
		_, err := Fetch(t.Context(), c.e, c.bundles, time.Now)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", what, err, c.want)
		}
	}
}

// TestHandler: GET and HEAD, and nothing that is not for everybody.
func TestHandler(t *testing.T) {
	us := newDomain(t, ours)
	h := Handler(us.document)
	for _, c := range []struct {
		method string
		want   int
	}{{http.MethodGet, 200}, {http.MethodHead, 200}, {http.MethodPost, 405}, {http.MethodDelete, 405}} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, "/any/path", nil))
		if w.Code != c.want || c.want == 200 && w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v", c.method, w.Code, w.Header())
		}
	}
	w := httptest.NewRecorder()
	Handler(func() ([]byte, error) { return nil, errors.New("secret words") }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

// TestEndpoints: what can be no endpoint.
func TestEndpoints(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://theirs.test/server")
	for what, e := range map[string]Endpoint{
		"http":           {URL: "http://a.test/", Profile: HTTPSWeb},
		"no host":        {URL: "https:///x", Profile: HTTPSWeb},
		"a user":         {URL: "https://u:p@a.test/", Profile: HTTPSWeb},
		"a fragment":     {URL: "https://a.test/#x", Profile: HTTPSWeb},
		"a port":         {URL: "https://a.test:0/", Profile: HTTPSWeb},
		"a long one":     {URL: "https://a.test/" + strings.Repeat("x", maxURL), Profile: HTTPSWeb},
		"no URL":         {URL: "https://a b/", Profile: HTTPSWeb},
		"profile":        {URL: "https://a.test/", Profile: "https"},
		"no ID":          {URL: "https://a.test/", Profile: HTTPSSPIFFE},
		"a domain as ID": {URL: "https://a.test/", Profile: HTTPSSPIFFE, ID: theirs.ID()},
		"an ID, web":     {URL: "https://a.test/", Profile: HTTPSWeb, ID: id},
	} {
		if e.Check() == nil {
			t.Errorf("%s: taken", what)
		}
	}
	for _, e := range []Endpoint{{URL: "https://a.test", Profile: HTTPSWeb}, {URL: "https://[::1]:8443/bundle?x=y", Profile: HTTPSSPIFFE, ID: id}} {
		if err := e.Check(); err != nil {
			t.Error(err)
		}
	}
}
