package control

import (
	"strings"
	"testing"
)

// TestAbsence: an export whose Service is declared and not understood says so, and why.
func TestAbsence(t *testing.T) {
	w := &world{in: inputs{objects: &Objects{Problems: []Problem{{Object: "Service shop/pay", Reason: "spec.ports[0].protocol: SCTP is not carried"}}}}}
	for name, want := range map[string]string{
		"pay": "Service shop/pay is not in force: spec.ports[0].protocol: SCTP is not carried", "gone": "there is no Service shop/gone",
	} {
		if got := w.absence(&ServiceExport{Meta: Meta{Namespace: "shop", Name: name}}); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
