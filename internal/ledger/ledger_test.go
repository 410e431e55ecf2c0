package ledger

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const web = "spiffe://eu/ns/shop/sa/web"

var (
	start = time.Unix(1e9, 0)
	rules = Rules{Floor: 1, Clusters: []string{"us", "ap"}, Callers: []string{web}, Service: "checkout.shop"}
)

// story is one request that went well: asked, carried, executed.
func story(id, method, by string) []Entry {
	return []Entry{
		{ID: id, Role: Client, At: start, Cluster: by, Method: method, Status: 200},
		{ID: id, Role: Caller, At: start, Cluster: "eu", Copy: "web", Method: method, Status: 200},
		{ID: id, Role: Callee, At: start, Cluster: by, Copy: "checkout-0", Method: method, Service: "checkout.shop", Caller: web, Status: 200},
		{ID: id, Role: Origin, At: start, Cluster: by, Copy: "checkout-0", Method: method, Status: 200},
	}
}

func TestGoodStories(t *testing.T) {
	for name, c := range map[string]struct {
		entries []Entry
		want    Report
	}{
		"two that went well":          {slices.Concat(story("1", "GET", "us"), story("2", "POST", "ap")), Report{Requests: 2, Repeatable: 1}},
		"a GET that was repeated":     {append(story("1", "GET", "us"), story("1", "GET", "ap")[2:]...), Report{Requests: 1, Repeatable: 1, Repeated: 1}},
		"a POST that failed honestly": {[]Entry{{ID: "1", Role: Client, Method: "POST", Status: 503}}, Report{Requests: 1, Failed: 1}},
		"a POST whose answer was lost": {
			append([]Entry{{ID: "1", Role: Client, Method: "POST", Err: "EOF"}}, story("1", "POST", "us")[2:]...),
			Report{Requests: 1, Failed: 1},
		},
		"the caller's sidecar alone": {[]Entry{{ID: "1", Role: Caller, Status: 503}}, Report{}},
	} {
		got := rules.Check(c.entries)
		if len(got.Violations) > 0 || got.Requests != c.want.Requests || got.Repeatable != c.want.Repeatable || got.Failed != c.want.Failed || got.Repeated != c.want.Repeated {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestBadStories: each thing that must not be is seen, and said.
func TestBadStories(t *testing.T) {
	change := func(method string, f func(s []Entry) []Entry) []Entry { return f(story("1", method, "us")) }
	for want, entries := range map[string][]Entry{
		"2 outcomes":             change("GET", func(s []Entry) []Entry { return append(s, s[0]) }),
		"nobody asked":           change("GET", func(s []Entry) []Entry { return s[1:] }),
		"GET failed: status 503": change("GET", func(s []Entry) []Entry { s[0].Status = 503; return s }),
		"GET failed: status 0":   change("GET", func(s []Entry) []Entry { s[0].Status, s[0].Err = 0, "EOF"; return s }),
		"executed 2 times":       change("POST", func(s []Entry) []Entry { return append(s, story("1", "POST", "ap")[2:]...) }),
		"not executed there":     change("GET", func(s []Entry) []Entry { s[0].Cluster = "ap"; return s }),
		"which may not answer":   story("1", "GET", "cn"),
		"knows of no call": change("GET", func(s []Entry) []Entry {
			return slices.DeleteFunc(s, func(e Entry) bool { return e.Role == Callee })
		}),
		"no call to checkout.shop": change("GET", func(s []Entry) []Entry { s[2].Service = "pay.shop"; return s }),
		"who may not call":         change("GET", func(s []Entry) []Entry { s[2].Caller = "spiffe://us/ns/shop/sa/web"; return s }),
	} {
		got := rules.Check(entries)
		if len(got.Violations) == 0 || !strings.Contains(got.Violations[0].What, want) {
			t.Errorf("want %q: %+v", want, got.Violations)
		}
	}
}

// TestExcuses: what was killed has not written all, and where nobody is left nobody answers; no excuse is good for more than that.
func TestExcuses(t *testing.T) {
	r := rules
	r.Killed = func(cluster, copied string, _ time.Time) bool { return cluster == "us" && copied == "checkout-0" }
	r.MayFail = func(at time.Time) bool { return at.After(start) }
	unwritten := func(by string) []Entry {
		return slices.DeleteFunc(story("1", "GET", by), func(e Entry) bool { return e.Role == Callee })
	}
	if got := r.Check(unwritten("us")); len(got.Violations) > 0 {
		t.Errorf("killed: %+v", got)
	}
	if got := r.Check(unwritten("ap")); len(got.Violations) != 1 {
		t.Errorf("not killed: %+v", got)
	}
	late, early := Entry{ID: "1", Role: Client, Method: "GET", At: start.Add(1)}, Entry{ID: "2", Role: Client, Method: "GET", At: start}
	if got := r.Check([]Entry{late, early}); got.Excused != 1 || len(got.Violations) != 1 || got.Violations[0].ID != "2" {
		t.Errorf("failures: %+v", got)
	}
}

func TestFloor(t *testing.T) {
	r := rules
	r.Floor = 2
	if rep := r.Check(story("1", "GET", "us")); r.Valid(rep) == nil {
		t.Error("a run of one request is taken for a proof")
	}
	if rep := r.Check(slices.Concat(story("1", "GET", "us"), story("2", "GET", "us"))); r.Valid(rep) != nil {
		t.Error(r.Valid(rep))
	}
}

func TestReadLog(t *testing.T) {
	const log = `{"time":"2026-01-01T00:00:00Z","level":"INFO","msg":"request","direction":"inbound","method":"GET","service":"checkout.shop","port":80,"caller":"spiffe://eu/ns/shop/sa/web","status":200,"duration":12,"trace_id":"ab"}
{"time":"2026-01-01T00:00:00Z","level":"INFO","msg":"starting"}
no JSON
{"time":"2026-01-01T00:00:01Z","msg":"request","direction":"outbound","method":"POST","status":0,"trace_id":"cd"}
{"time":"2026-01-01T00:00:02Z","msg":"request","direction":"served","method":"GET","status":200,"trace_id":"ef"}
{"time":"2026-01-01T00:00:03Z","msg":"request","direction":"served","trace_id":"01"`
	got, err := ReadLog(strings.NewReader(log), "us", "checkout-0")
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if e := got[0]; e.ID != "ab" || e.Role != Callee || e.Caller != web || e.Service != "checkout.shop" || e.Status != 200 || e.Cluster != "us" || e.At.IsZero() {
		t.Errorf("%+v", e)
	}
	if got[1].Role != Caller || got[2].Role != Origin {
		t.Errorf("%+v", got[1:])
	}
}
