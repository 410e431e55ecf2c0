package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/isthmus-mesh/isthmus/sidecar/capture"
)

const (
	// captureAnnotation says what is captured in a Pod: capture.Rules, in JSON. The injection writes it.
	captureAnnotation = "isthmus.dev/capture"
	// annotationsCapability is by what a runtime hands a Pod's annotations to a plugin (containerd and CRI-O know it).
	annotationsCapability = "io.kubernetes.cri.pod-annotations"
)

// maxInput bounds what a runtime hands over: annotations of 256 KiB, and the result of other plugins.
const maxInput = 1 << 20

// versions of the CNI specification in which the plugin does the same.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Error codes of the CNI specification, section 5.
const (
	codeVersion  = 1
	codeDecode   = 6
	codeConf     = 7
	codeInstall  = 100 // from here on a plugin's own
	codeNotFirst = 101
)

// plugin is one run by the runtime.
type plugin struct {
	env     func(string) string
	install func(netns string, r capture.Rules) error
}

// conf is what is read of a network configuration.
type conf struct {
	CNIVersion    string          `json:"cniVersion"`
	PrevResult    json.RawMessage `json:"prevResult"`
	RuntimeConfig struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`
}

// failure is an error as the specification has it.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

// run does what the runtime asks for, and returns the exit code.
func (p *plugin) run(command string, stdin io.Reader, stdout io.Writer) int {
	version := "1.0.0"
	fail := func(code int, msg string, err error) int {
		f := failure{CNIVersion: version, Code: code, Msg: "isthmus-cni: " + msg}
		if err != nil {
			f.Details = err.Error()
		}
		_ = json.NewEncoder(stdout).Encode(f) // the exit code says the same
		return 1
	}
	raw, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
	if err == nil && len(raw) > maxInput {
		err = fmt.Errorf("more than %d bytes", maxInput)
	}
	var c conf
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err != nil {
		return fail(codeDecode, "network configuration can't be read", err)
	}
	if command == "VERSION" {
		if slices.Contains(versions, c.CNIVersion) {
			version = c.CNIVersion
		}
		_ = json.NewEncoder(stdout).Encode(map[string]any{"cniVersion": version, "supportedVersions": versions}) // nobody reads it
		return 0
	}
	if !slices.Contains(versions, c.CNIVersion) {
		return fail(codeVersion, fmt.Sprintf("version %q of the CNI specification is not known", c.CNIVersion), nil)
	}
	version = c.CNIVersion
	if command != "ADD" { // the rules go with the Pod's network namespace
		return 0
	}
	if len(c.PrevResult) == 0 || bytes.Equal(c.PrevResult, []byte("null")) {
		return fail(codeNotFirst, "it makes no network: put it behind the plugin that does, in a list", nil)
	}
	if text, meshed := c.RuntimeConfig.Annotations[captureAnnotation]; meshed {
		rules, wrong := readRules(text)
		if wrong != nil {
			return fail(codeConf, "annotation "+captureAnnotation, wrong)
		}
		if err = p.install(p.env("CNI_NETNS"), rules); err != nil {
			return fail(codeInstall, "connections can't be captured", err)
		}
	}
	if _, err = stdout.Write(append(c.PrevResult, '\n')); err != nil {
		return 1
	}
	return 0
}

// readRules reads what somebody wrote on a Pod: it may be anybody who may make Pods, and takes effect in that Pod's own network alone.
func readRules(text string) (r capture.Rules, err error) {
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err = d.Decode(&r); err != nil {
		return r, err
	}
	if d.More() {
		return r, errors.New("something follows it")
	}
	if len(r.SkipUsers) == 0 {
		return r, errors.New("skipUsers: the sidecar's own connections would come back to it")
	}
	return r, r.Check()
}
