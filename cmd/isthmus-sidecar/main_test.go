package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
	"github.com/isthmus-mesh/isthmus/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		out  string // on standard output
		err  string
	}{
		{[]string{"--help"}, 0, "Usage:", ""},
		{[]string{"-h"}, 0, "Usage:", ""},
		{[]string{"--version"}, 0, "isthmus-sidecar ", ""},
		{nil, 2, "", "--config FILE is missing"},
		{[]string{"--confg", "x"}, 2, "", "--help says more"},
		{[]string{"--config", "x", "y"}, 2, "", `unexpected argument "y"`},
		{[]string{"--config", "no-such-file"}, 2, "", "no-such-file"},
	} {
		var out, errs bytes.Buffer
		err := run(t.Context(), c.args, strings.NewReader(""), &out, &errs)
		if exitCode(err) != c.code || !strings.HasPrefix(out.String(), c.out) && !strings.Contains(out.String(), c.out) || c.err != "" && !strings.Contains(fmt.Sprint(err), c.err) {
			t.Errorf("%q: code %d, %q, %v", c.args, exitCode(err), out.String(), err)
		}
	}
}

const least = "workload: shop/web\ncontrol: 127.0.0.1:1\ntrustDomain: eu.test\nstate: %s\n"

func TestConfig(t *testing.T) {
	state := t.TempDir()
	for what, c := range map[string]struct {
		more string
		want string // of the error; empty: it is taken
	}{
		"least":               {"", ""},
		"all":                 {"listen: {inbound: 127.0.0.1:0, proxy: ':0', dns: ':0', admin: ':0'}\nadvertise: {inbound: 10.0.0.1:1}\nlisteners: [{service: checkout.shop, port: 80, scope: cluster, listen: ':0'}, {service: dns.shop, port: 53, protocol: udp, listen: ':0', idle: 1m}]\ndrainGrace: 3s\nlog: {level: warn, format: json, requests: info}", ""},
		"unknown key":         {"proxy: x", ":5: "},
		"duplicate key":       {"control: x:1", ":5: "},
		"not host:port":       {"listen: {proxy: here}", `5: listen.proxy: "here": want host:port`},
		"both":                {"node: node-0\nlisten: {inbound: '127.0.0.1:0'}", "want either workload or node"},
		"port alone":          {"listen: {proxy: 15001}", "5: listen.proxy: is a number, want host:port"},
		"port":                {"listen: {admin: '127.0.0.1:99999'}", "5: listen.admin: "},
		"listener":            {"listeners:\n- {service: checkout.shop, port: 80}", "listeners[0]: service, port and listen are needed"},
		"listener's protocol": {"listeners:\n- {service: checkout.shop, port: 80, listen: ':0',\n   protocol: sctp}", ":7: listeners[0].protocol: "},
		"listener's idle":     {"listeners:\n- {service: checkout.shop, port: 80, listen: ':0', protocol: udp,\n   idle: 1h}", ":7: listeners[0].idle: "},
		"idle of TCP":         {"listeners:\n- {service: checkout.shop, port: 80, listen: ':0',\n   idle: 30s}", ":7: listeners[0].idle: "},
		"listener's name":     {"listeners:\n- {port: 80, listen: ':0',\n   service: checkout}", ":7: listeners[0].service: "},
		"listener's scope":    {"listeners:\n- {service: checkout.shop, port: 80, listen: ':0',\n   scope: all}", ":7: listeners[0].scope: "},
		"grace":               {"drainGrace: soon", "drainGrace: want a duration"},
		"level":               {"log:\n  level: verbose", `:6: log.level: "verbose": want debug`},
		"format":              {"log: {format: xml}", ":5: log.format: "},
		"workload API":        {"listen: {workloadAPI: api.sock}\nworkloadAPI: {uids: [1001, 0]}", ""},
		"nobody's socket":     {"workloadAPI: {anyUid: true}", ":5: workloadAPI: says who may use listen.workloadAPI, which is missing"},
		"any and some":        {"listen: {workloadAPI: api.sock}\nworkloadAPI: {anyUid: true, uids: [1]}", ":6: workloadAPI.uids: of no effect"},
		"level of requests":   {"log: {requests: loud}", `log.requests: "loud": want`},
	} {
		t.Run(what, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "sidecar.yaml")
			if err := os.WriteFile(file, fmt.Appendf(nil, least+c.more, state), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readConfig(file)
			if c.want == "" && err != nil || c.want != "" && !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for what, text := range map[string]string{
		"workload: want namespace/name": "workload: web",
		"listen.inbound: is missing":    "node: node-0",
		"stands beside no workload":     "node: node-0\nlisten: {workloadAPI: api.sock}",
		"control: is missing":           "",
		"trustDomain: ":                 "trustDomain: 'a b'",
	} {
		file := filepath.Join(t.TempDir(), "sidecar.yaml")
		if err := os.WriteFile(file, []byte("state: x\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readConfig(file); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

// TestHelp: every key of the file is in the help.
func TestHelp(t *testing.T) {
	var keys func(v reflect.Type) []string
	keys = func(v reflect.Type) []string {
		var out []string
		for f := range v.Fields() {
			tag := f.Tag.Get("json")
			if tag == "" {
				continue
			}
			out = append(out, tag)
			inner := f.Type
			if inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct && inner != reflect.TypeFor[topology.ServiceName]() {
				out = append(out, keys(inner)...)
			}
		}
		return out
	}
	for _, k := range keys(reflect.TypeFor[config]()) {
		if !strings.Contains(help, " "+k+":") {
			t.Errorf("--help says nothing of %s", k)
		}
	}
}

func TestAddresses(t *testing.T) {
	if got := loopback(":80"); got != "127.0.0.1:80" {
		t.Error(got)
	}
	if got := loopback("0.0.0.0:80"); got != "0.0.0.0:80" {
		t.Error(got)
	}
	for _, c := range []struct {
		configured, bound, want string
	}{
		{"", "10.0.0.1:5", "10.0.0.1:5"},
		{"10.0.0.2:0", "0.0.0.0:5", "10.0.0.2:5"},
		{"10.0.0.2:7", "0.0.0.0:5", "10.0.0.2:7"},
		{"", "0.0.0.0:5", ""},
		{"node.example:7", "0.0.0.0:5", ""},
	} {
		bound, err := net.ResolveTCPAddr("tcp", c.bound)
		if err != nil {
			t.Fatal(err)
		}
		got, err := advertised(strictyaml.Address(c.configured), bound)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%+v: got %q, %v", c, got, err)
		}
	}
}

// TestRun: with no control to be found it runs all the same, says what it waits for, and ends when asked to.
func TestRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sidecar.yaml")
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := admin.Addr().String()
	_ = admin.Close()
	socket := filepath.Join(t.TempDir(), "api.sock")
	text := fmt.Sprintf(least, t.TempDir()) + "listen: {inbound: '127.0.0.1:0', proxy: ':0', dns: ':0', workloadAPI: '" + socket + "', admin: '" + address + "'}\nlisteners: [{service: checkout.shop, port: 80, listen: '0.0.0.0:0'}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var logs buffer
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"--config", file}, strings.NewReader(""), io.Discard, &logs) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	ask := func(path string) (int, string) {
		for deadline := time.Now().Add(30 * time.Second); ; {
			resp, err := client.Get("http://" + address + path)
			if err == nil {
				defer func() { _ = resp.Body.Close() }()
				body, _ := io.ReadAll(resp.Body)
				return resp.StatusCode, string(body)
			}
			select {
			case ended := <-done:
				t.Fatalf("it ended: %v\n%s", ended, logs.String())
			default:
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v\n%s", err, logs.String())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	for _, c := range []struct {
		path  string
		want  int
		words string
	}{
		{"/livez", 200, "identity"},
		{"/readyz", 503, "configuration"},
		{"/metrics", 200, "isthmus_connections"},
		{"/explain?to=checkout.shop", 200, `"error":`},
		{"/explain?to=checkout.shop&port=x", 400, "port"},
		{"/explain", 400, "not a name of the mesh"},
	} {
		if status, body := ask(c.path); status != c.want || !strings.Contains(body, c.words) {
			t.Errorf("%s: got %d %q", c.path, status, body)
		}
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the Workload API's socket: %v, %v", info, err)
	}
	asking, end := context.WithTimeout(ctx, 100*time.Millisecond)
	defer end()
	if _, err := workloadapi.FetchX509SVID(asking, workloadapi.WithAddr("unix://"+socket)); status.Code(err) != codes.DeadlineExceeded { // it waits for the first SVID
		t.Errorf("the Workload API answered %v", err)
	}
	if !strings.Contains(logs.String(), "others may reach it") {
		t.Errorf("no warning of an open listener in %q", logs.String())
	}
	cancel()
	if err := <-done; exitCode(err) != 0 {
		t.Errorf("it ended with %v", err)
	}
}

// TestPortTaken: what can't be bound is an error that names it, and what was bound is given back.
func TestPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	file := filepath.Join(t.TempDir(), "sidecar.yaml")
	text := fmt.Sprintf(least, t.TempDir()) + "listen: {inbound: '127.0.0.1:0', proxy: '" + taken.Addr().String() + "'}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"--config", file}, strings.NewReader(""), io.Discard, io.Discard); exitCode(err) != 1 || !strings.Contains(err.Error(), "listen.proxy: listen tcp "+taken.Addr().String()) {
		t.Errorf("got %v", err)
	}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
