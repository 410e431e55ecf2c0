package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/control/inject"
)

// TestTheChartsConfigurations: what the chart writes is what control reads.
func TestTheChartsConfigurations(t *testing.T) {
	t.Setenv("HOST_IP", "192.0.2.7")
	files, err := filepath.Glob("../../internal/install/testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no rendered charts: %v", err)
	}
	seen := make(map[string]int)
	for _, file := range files {
		manifest, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range bytes.SplitSeq(manifest, []byte("\n---\n")) {
			var m corev1.ConfigMap
			if err := yaml.Unmarshal(document, &m); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if m.Kind != "ConfigMap" {
				continue
			}
			seen[m.Name]++
			switch m.Name {
			case "isthmus-control":
				path := filepath.Join(t.TempDir(), "control.yaml")
				if err := os.WriteFile(path, []byte(m.Data["control.yaml"]), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := readConfig(path); err != nil {
					t.Errorf("%s: %v\n%s", file, err, m.Data["control.yaml"])
				}
			case "isthmus-injection":
				if _, err := inject.ParseSettings("injection.yaml", []byte(m.Data["injection.yaml"])); err != nil {
					t.Errorf("%s: %v\n%s", file, err, m.Data["injection.yaml"])
				}
			}
		}
	}
	if seen["isthmus-control"] == 0 || seen["isthmus-injection"] == 0 {
		t.Errorf("ConfigMaps seen: %v", seen)
	}
}
