package errcode

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestEntries(t *testing.T) {
	code := regexp.MustCompile(`^IST\d{4}$`)
	for _, e := range All() {
		if !code.MatchString(e.Code) || e.Title == "" || e.Meaning == "" || e.Fix == "" {
			t.Errorf("incomplete: %+v", e)
		}
	}
	if !slices.IsSortedFunc(entries, func(a, b Entry) int { return strings.Compare(a.Code, b.Code) }) {
		t.Error("not ordered by code")
	}
	if e, ok := Lookup("ist2003"); !ok || e.Code != "IST2003" {
		t.Errorf("lookup: %+v %v", e, ok)
	}
	if _, ok := Lookup("IST9999"); ok {
		t.Error("IST9999 was found")
	}
}
