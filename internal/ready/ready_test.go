package ready_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/ready"
)

func TestReadinessNamesWhatIsMissing(t *testing.T) {
	c := ready.New()
	c.Waiting("identity", "no SVID yet")
	c.Waiting("configuration", "control has not answered")
	probe := func(h http.Handler) (int, ready.Answer) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		var a ready.Answer
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
		return w.Code, a
	}

	code, a := probe(c.Ready())
	want := []string{"configuration: control has not answered", "identity: no SVID yet"}
	if code != http.StatusServiceUnavailable || a.Ready || !slices.Equal(a.Missing, want) {
		t.Errorf("not ready: got %d %+v, want 503 naming %q", code, a, want)
	}
	if code, _ := probe(c.Live()); code != http.StatusOK {
		t.Errorf("live: got %d, want 200: waiting is not dead", code)
	}

	c.Done("identity")
	c.Done("configuration")
	if code, a := probe(c.Ready()); code != http.StatusOK || !a.Ready {
		t.Errorf("ready: got %d %+v, want 200", code, a)
	}
	c.Waiting("identity", "expired")
	if code, _ := probe(c.Ready()); code != http.StatusServiceUnavailable {
		t.Errorf("lost again: got %d, want 503", code)
	}
}
