package policy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	results, err := Test("testdata/checkout_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 9 {
		t.Errorf("%d cases, want 9", len(results))
	}
	for _, r := range results {
		if r.Wrong != "" {
			t.Errorf("%s:%d: %s: %s", r.File, r.Line, r.Name, r.Wrong)
		}
	}
	if r := results[6]; r.Line != 13 || r.Name != "a refund" || r.Rule != "refunds" {
		t.Errorf("%+v", r)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "t.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const policyText = `
---
apiVersion: isthmus.dev/v1alpha1
kind: AccessPolicy
metadata: {namespace: shop, name: p}
spec: {rules: [{name: web, from: [{clusters: [eu]}]}]}
`

// TestWrongCases: each way in which a case may not come out as it shall is told, with the line.
func TestWrongCases(t *testing.T) {
	results, err := Test(write(t, `clusters: {eu: eu.example}
cases:
- {caller: eu/shop/web, want: deny}
- {caller: eu/shop/web, want: allow, rule: other}
- {caller: eu/shop/web, want: allow, reason: denied_by_rule}
- {caller: eu/shop/web, want: allow, audit: deny}
- {caller: spiffe://ap.example/ns/a/sa/b, want: allow}
`+policyText))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		`want deny, got allow by rule "web" of shop/p (allowed_by_rule)`,
		`want it by rule other, got allow by rule "web" of shop/p (allowed_by_rule)`,
		`want the reason denied_by_rule, got allow by rule "web" of shop/p (allowed_by_rule)`,
		`want deny of policies in audit mode, got allow (no_policy)`,
		`want allow, got deny (no_rule_allows, policy shop/p)`,
	} {
		if results[i].Wrong != want || results[i].Line != i+3 {
			t.Errorf("line %d: %q, want %q at line %d", results[i].Line, results[i].Wrong, want, i+3)
		}
	}
}

// TestAuditMode: a policy that is not enforced yet can be tried, and a case that it would have passed says what to do.
func TestAuditMode(t *testing.T) {
	text := `clusters: {eu: eu.example}
cases:
- {caller: eu/shop/web, want: allow, rule: web}
- {caller: spiffe://ap.example/ns/a/sa/b, want: deny, reason: no_rule_allows}
` + strings.Replace(policyText, "spec: {", "spec: {mode: Audit, ", 1)
	results, err := Test(write(t, text))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if !strings.Contains(r.Wrong, "enforce: true") {
			t.Errorf("line %d: %q", r.Line, r.Wrong)
		}
	}
	if results, err = Test(write(t, "enforce: true\n"+text)); err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Wrong != "" {
			t.Errorf("as if it were enforced: line %d: %s", r.Line, r.Wrong)
		}
	}
}

// TestDocs: the example of docs/policy.md works as it is printed.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	blocks := regexp.MustCompile("(?s)\n( *)```yaml\n(.*?)\n *```").FindAllStringSubmatch(string(text), -1)
	found := 0
	for name, begins := range map[string]string{"checkout.yaml": "kind: AccessPolicy", "checkout_test.yaml": "cases:"} {
		for _, b := range blocks {
			if !strings.Contains(b[2], begins) {
				continue
			}
			found++
			block := strings.TrimPrefix(strings.ReplaceAll("\n"+b[2], "\n"+b[1], "\n"), "\n")
			if err = os.WriteFile(filepath.Join(dir, name), []byte(block+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	results, err := Test(filepath.Join(dir, "checkout_test.yaml"))
	if err != nil || found != 2 || len(results) < 3 {
		t.Fatalf("%d blocks, %d results, %v", found, len(results), err)
	}
	for _, r := range results {
		if r.Wrong != "" {
			t.Errorf("%s:%d: %s: %s", r.File, r.Line, r.Name, r.Wrong)
		}
	}
}

// TestMistakes: what can't be meant is refused with its line, before any case counts.
func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"cases: []\n": "t.yaml:1",
		"case: []\n":  "has no cases",
		"cases:\n- {caller: eu/shop/web, want: allow}":                                           "t.yaml:2: cases[0].caller: cluster \"eu\" is none of clusters",
		"clusters: {eu: eu.example}\ncases:\n- {caller: eu/shop/web, wanted: allow}":             "t.yaml:3: cases[0].wanted: unknown field",
		"clusters: {eu: eu.example}\ncases:\n- {caller: eu/shop, want: allow}":                   "want cluster/namespace/service-account",
		"clusters: {eu: eu.example}\ncases:\n- {caller: eu/a/b, want: maybe}":                    `cases[0].want: "maybe": want allow or deny`,
		"clusters: {eu: eu.example}\ncases:\n- {caller: eu/a/b, want: deny, reason: whim}":       "reason",
		"clusters: {eu: eu.example}\ncases:\n- {caller: eu/a/b, want: deny, tcp: true, path: /}": "opaque bytes have no",
		"clusters: {eu: eu.example}\ncases:\n- {caller: eu/a/b, want: deny, user: {}}":           "is none of the policies' issuers",
		"clusters: {us: us.example}\ncases:\n- {caller: us/a/b, want: deny}":                     "names cluster eu, which is not said here",
		"cluster: us\ncases:\n- {caller: spiffe://a/b, want: deny}":                              `cluster: "us" is none of clusters`,
		"policies: [none.yaml]\ncases:\n- {caller: spiffe://a/b, want: deny}":                    "policies[0]",
	} {
		_, err := Test(write(t, text+policyText))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
	bad := write(t, "cases:\n- {caller: spiffe://a/b, want: deny}\n---\napiVersion: isthmus.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p}\nspec: {rules: [{}]}\n")
	if _, err := Test(bad); err == nil || !strings.Contains(err.Error(), "t.yaml:7") {
		t.Errorf("a bad policy in the file: %v", err)
	}
}
