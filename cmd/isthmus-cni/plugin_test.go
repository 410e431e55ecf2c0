package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/sidecar/capture"
)

// TestPlugin: what the runtime is answered, and what is put in force in which network namespace.
func TestPlugin(t *testing.T) {
	const result = `{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.7/24"}],"something":{"of":"others"}}`
	with := func(annotations string) string {
		return `{"cniVersion":"1.0.0","name":"net","type":"isthmus-cni","prevResult":` + result + `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":` + annotations + `}}`
	}
	for what, c := range map[string]struct {
		command, stdin string
		broken         error // of capturing
		code           int
		stdout         string
		rules          string
	}{
		"a Pod with a sidecar": {
			"ADD", with(`{"isthmus.dev/capture":"{\"to\":[\"241.0.0.0/8\"],\"port\":15006,\"skipUsers\":[15000],\"skipTo\":[\"241.7.0.0/16\"],\"skipPorts\":[22]}"}`),
			nil, 0, result, `{"to":["241.0.0.0/8"],"port":15006,"skipUsers":[15000],"skipTo":["241.7.0.0/16"],"skipPorts":[22]}`,
		},
		"another Pod":             {"ADD", with(`{"other":"x"}`), nil, 0, result, ""},
		"a runtime that is old":   {"ADD", `{"cniVersion":"0.4.0","prevResult":` + result + `}`, nil, 0, result, ""},
		"alone":                   {"ADD", `{"cniVersion":"1.0.0"}`, nil, 1, `"code":101`, ""},
		"alone, in other words":   {"ADD", `{"cniVersion":"1.0.0","prevResult":null}`, nil, 1, `"code":101`, ""},
		"rules that are none":     {"ADD", with(`{"isthmus.dev/capture":"x"}`), nil, 1, `"code":7`, ""},
		"rules of another":        {"ADD", with(`{"isthmus.dev/capture":"{\"node\":\"192.0.2.7\"}"}`), nil, 1, "unknown field", ""},
		"rules that hold all":     {"ADD", with(`{"isthmus.dev/capture":"{\"to\":[\"0.0.0.0/0\"],\"port\":1,\"skipUsers\":[1]}"}`), nil, 1, "is everything", ""},
		"rules that never end":    {"ADD", with(`{"isthmus.dev/capture":"{\"to\":[\"241.0.0.0/8\"],\"port\":1}"}`), nil, 1, "skipUsers", ""},
		"a kernel that won't":     {"ADD", with(`{"isthmus.dev/capture":"{\"to\":[\"241.0.0.0/8\"],\"port\":1,\"skipUsers\":[1]}"}`), errors.New("no nftables"), 1, "no nftables", ""},
		"the end of a Pod":        {"DEL", `{"cniVersion":"1.0.0"}`, nil, 0, "", ""},
		"a check":                 {"CHECK", `{"cniVersion":"1.0.0","prevResult":` + result + `}`, nil, 0, "", ""},
		"the version":             {"VERSION", `{"cniVersion":"0.4.0"}`, nil, 0, `"supportedVersions":["0.3.0"`, ""},
		"a version of the future": {"ADD", `{"cniVersion":"2.0.0","prevResult":{}}`, nil, 1, `"code":1`, ""},
		"no JSON":                 {"ADD", "x", nil, 1, `"code":6`, ""},
		"too much":                {"ADD", strings.Repeat(" ", maxInput+1), nil, 1, `"code":6`, ""},
	} {
		var stdout bytes.Buffer
		rules := ""
		p := plugin{
			env: func(name string) string { return map[string]string{"CNI_NETNS": "/run/netns/pod"}[name] },
			install: func(netns string, r capture.Rules) error {
				b, err := json.Marshal(r)
				if err != nil || netns != "/run/netns/pod" {
					t.Errorf("%s: %v, in %q", what, err, netns)
				}
				if c.broken == nil {
					rules = string(b)
				}
				return c.broken
			},
		}
		code := p.run(c.command, strings.NewReader(c.stdin), &stdout)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || (c.stdout == "") != (stdout.Len() == 0) || rules != c.rules {
			t.Errorf("%s: exit %d, %s; rules %s", what, code, stdout.String(), rules)
		}
		if stdout.Len() > 0 && !json.Valid(stdout.Bytes()) {
			t.Errorf("%s: no JSON: %s", what, stdout.String())
		}
	}
}

// TestNode: it stands at the end of the list that the runtime uses, and nowhere else; what others wrote stays; a second time changes nothing.
func TestNode(t *testing.T) {
	bin, confs := t.TempDir(), t.TempDir()
	const kindnet = `{"cniVersion":"0.3.1","name":"kindnet","future":[1.50,{"a":"<b>"}],"plugins":[{"type":"ptp","mtu":1500},{"type":"portmap"}]}`
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(confs, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	types := func(name string) string {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(confs, name))
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			Future  json.RawMessage
			Plugins []struct{ Type string }
		}
		if err = json.Unmarshal(raw, &list); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), "1.50") {
			t.Errorf("what others wrote was written anew: %s", raw)
		}
		var out []string
		for _, p := range list.Plugins {
			out = append(out, p.Type)
		}
		return strings.Join(out, " ")
	}
	args := []string{"--bin-dir", bin, "--conf-dir", confs}
	act := func(what string) error {
		return run(t.Context(), append([]string{what}, args...), new(bytes.Buffer), new(bytes.Buffer))
	}
	if err := act("--install"); exitCode(err) != 1 || !strings.Contains(err.Error(), "no *.conflist") {
		t.Errorf("without a network: %v", err)
	}
	put("10-kindnet.conflist", kindnet)
	for range 2 {
		if err := act("--install"); err != nil {
			t.Fatal(err)
		}
		if got := types("10-kindnet.conflist"); got != "ptp portmap isthmus-cni" {
			t.Error(got)
		}
	}
	info, err := os.Stat(filepath.Join(bin, name))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the program: %v, %v", info, err)
	}
	n := node{bin: bin, conf: confs}
	if changed, settleErr := n.settle(); changed || settleErr != nil {
		t.Errorf("it changes what is as it should be: %v", settleErr)
	}
	// Another network comes first by its name.
	put("05-other.conflist", kindnet)
	if err = act("--install"); err != nil {
		t.Fatal(err)
	}
	if a, b := types("05-other.conflist"), types("10-kindnet.conflist"); a != "ptp portmap isthmus-cni" || b != "ptp portmap" {
		t.Errorf("%s; %s", a, b)
	}
	for range 2 {
		if err = act("--remove"); err != nil {
			t.Fatal(err)
		}
	}
	if a := types("05-other.conflist"); a != "ptp portmap" {
		t.Error(a)
	}
	if _, err = os.Stat(filepath.Join(bin, name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the program stays: %v", err)
	}
	put("05-other.conflist", "{")
	if err = act("--install"); exitCode(err) != 1 || !strings.Contains(err.Error(), "05-other.conflist") {
		t.Errorf("a file that is broken: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err = run(ctx, append(args, "--install", "--stay"), new(bytes.Buffer), new(bytes.Buffer)); err != nil {
		t.Errorf("asked to end: %v", err)
	}
	for _, args := range [][]string{{}, {"--install", "--remove"}, {"--what"}, {"--install", "x"}} {
		if err := run(t.Context(), args, nil, nil); exitCode(err) != 2 {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func FuzzPlugin(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","prevResult":{},"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"isthmus.dev/capture":"{\"to\":[\"241.0.0.0/8\"],\"port\":15006,\"skipUsers\":[15000]}"}}}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		for _, command := range []string{"ADD", "DEL", "VERSION"} {
			var stdout bytes.Buffer
			p := plugin{env: func(string) string { return "" }, install: func(_ string, r capture.Rules) error { return r.Check() }}
			if code := p.run(command, bytes.NewReader(stdin), &stdout); code != 0 && !json.Valid(stdout.Bytes()) {
				t.Fatalf("%s: exit %d without an error: %s", command, code, stdout.String())
			}
		}
	})
}
