package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestUsage(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		code int
		out  string // on standard output
		err  string
	}{
		"help":     {[]string{"--help"}, 0, "Usage:", ""},
		"-h":       {[]string{"-h"}, 0, "Usage:", ""},
		"version":  {[]string{"--version"}, 0, "isthmus-gateway ", ""},
		"nothing":  {nil, 2, "", "--config"},
		"unknown":  {[]string{"--colour"}, 2, "", "colour"},
		"argument": {[]string{"--config", "x", "y"}, 2, "", `"y"`},
		"no file":  {[]string{"--config", filepath.Join(t.TempDir(), "none.yaml")}, 2, "", "none.yaml"},
	} {
		var stdout, stderr bytes.Buffer
		err := run(t.Context(), tc.args, strings.NewReader(""), &stdout, &stderr)
		if exitCode(err) != tc.code || !strings.Contains(fmt.Sprint(err), tc.err) || !strings.Contains(stdout.String(), tc.out) {
			t.Errorf("%s: exit code %d, %v, printed %q", name, exitCode(err), err, stdout.String())
		}
		if stderr.Len() > 0 {
			t.Errorf("%s: wrote %q to standard error", name, stderr.String())
		}
	}
	if code := exitCode(errors.New("any")); code != 1 {
		t.Errorf("exit code %d for a failure", code)
	}
}

// Every key of the file is in the help, and the help's own example is taken.
func TestHelpDocumentsEachKey(t *testing.T) {
	var walk func(prefix string, of reflect.Type)
	walk = func(prefix string, of reflect.Type) {
		for f := range of.Fields() {
			key := f.Tag.Get("json")
			if key == "" {
				continue
			}
			if !regexp.MustCompile(`(?m)^ +` + key + `:`).MatchString(help) {
				t.Errorf("%s%s is not in the help", prefix, key)
			}
			if f.Type.Kind() == reflect.Struct {
				walk(prefix+key+".", f.Type)
			}
		}
	}
	walk("", reflect.TypeFor[config]())

	from, to := strings.Index(help, "  id:"), strings.Index(help, "\nSIGTERM")
	file := write(t, example(help[from:to]))
	if _, err := readConfig(file); err != nil {
		t.Errorf("the example: %v", err)
	}
}

// example leaves out the words beside and below the keys.
func example(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if m := regexp.MustCompile(`^( +[A-Za-z]+:(?: \S+)?)(?: {2,}|\n)`).FindStringSubmatch(line); m != nil {
			b.WriteString(strings.TrimSuffix(m[1], " ") + "\n")
		}
	}
	return b.String()
}

func write(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gateway.yaml")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestConfigSaysWhere(t *testing.T) {
	const good = "id: gateway-0\ncontrol: 127.0.0.1:1\ntrustDomain: eu.test\nstate: s\nlisten:\n  streams: 127.0.0.1:0\n  quic: 127.0.0.1:0\n"
	if _, err := readConfig(write(t, good)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ content, want string }{
		"unknown key":  {good + "colour: red\n", "gateway.yaml:8: colour"},
		"unknown deep": {good + "  tcp: x\n", "gateway.yaml:8: listen.tcp"},
		"missing":      {strings.Replace(good, "id: gateway-0\n", "", 1), "id: is missing"},
		"address":      {strings.Replace(good, "streams: 127.0.0.1:0", "streams: here", 1), "gateway.yaml:6: listen.streams"},
		"port alone":   {strings.Replace(good, "streams: 127.0.0.1:0", "streams: 7443", 1), "gateway.yaml:6: listen.streams: is a number, want host:port"},
		"port":         {strings.Replace(good, "quic: 127.0.0.1:0", "quic: 127.0.0.1:99999", 1), "gateway.yaml:7: listen.quic: "},
		"level":        {good + "log:\n  level: verbose\n", `gateway.yaml:9: log.level: "verbose": want debug`},
		"format":       {good + "log:\n  format: xml\n", `gateway.yaml:9: log.format: "xml": want text or json`},
		"domain":       {strings.Replace(good, "eu.test", "EU!", 1), "gateway.yaml:3: trustDomain"},
		"id":           {strings.Replace(good, "gateway-0", "a/b", 1), "gateway.yaml:1: id"},
		"connections":  {good + "connectionsPerPeer: 1000\n", "gateway.yaml:8: connectionsPerPeer"},
		"duration":     {good + "deadAfter: soon\n", "gateway.yaml:8: deadAfter"},
		"too often":    {good + "probeInterval: 1ns\n", "gateway.yaml:8: probeInterval"},
		"too seldom":   {good + "probeInterval: 5s\n", "gateway.yaml:8: probeInterval"},
		"two":          {good + "---\n" + good, "a second document"},
		"empty":        {"", "empty"},
	} {
		if _, err := readConfig(write(t, tc.content)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want %q", name, err, tc.want)
		}
	}
}

func TestAdvertised(t *testing.T) {
	bound := &net.TCPAddr{IP: net.IPv4(10, 0, 0, 6), Port: 7443}
	anywhere := &net.TCPAddr{IP: net.IPv6unspecified, Port: 7443}
	for name, tc := range map[string]struct {
		configured string
		bound      net.Addr
		want       string // empty: an error
	}{
		"as bound":            {"", bound, "10.0.0.6:7443"},
		"as configured":       {"gw.example:443", anywhere, "gw.example:443"},
		"the port that bound": {"gw.example:0", anywhere, "gw.example:7443"},
		"anywhere":            {"", anywhere, ""},
		"anywhere, by words":  {"0.0.0.0:443", bound, ""},
		"no host":             {":443", bound, ""},
	} {
		got, err := advertised("advertise.quic", strictyaml.Address(tc.configured), tc.bound)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// Without a control plane the program runs, says what is missing, and stops when asked.
func TestRunWithoutControl(t *testing.T) {
	dir := t.TempDir()
	file := write(t, "id: gateway-0\ncontrol: 127.0.0.1:1\ntrustDomain: eu.test\nstate: "+dir+
		"\nlisten:\n  streams: 127.0.0.1:0\n  quic: 127.0.0.1:0\n  admin: 127.0.0.1:0\nlog:\n  format: json\n")
	ctx, stop := context.WithCancel(t.Context())
	logs, stderr := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"--config", file}, strings.NewReader(""), io.Discard, stderr)
		_ = stderr.Close()
	}()
	admin := make(chan string, 1)
	go func() {
		d := json.NewDecoder(logs)
		for {
			var line map[string]any
			if d.Decode(&line) != nil {
				return
			}
			if line["msg"] == "starting" {
				admin <- line["admin"].(string)
			}
		}
	}()
	client := http.Client{Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	base := "http://" + <-admin
	get := func(path string) (int, string) {
		response, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	if status, _ := get("/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d", status)
	}
	if status, body := get("/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "gateway: no configuration yet") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	if status, body := get("/metrics"); status != http.StatusOK || !strings.Contains(body, "isthmus_gateway_connections_shed_total 0") {
		t.Errorf("/metrics: %d", status)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}
