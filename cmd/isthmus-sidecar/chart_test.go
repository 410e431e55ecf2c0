package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestTheChartsConfigurations: what the chart writes is what a node proxy reads.
func TestTheChartsConfigurations(t *testing.T) {
	for name, value := range map[string]string{"HOST_IP": "192.0.2.7", "POD_IP": "10.1.0.7", "POD_NAME": "isthmus-gateway-0", "NODE_NAME": "node-0"} {
		t.Setenv(name, value)
	}
	files, err := filepath.Glob("../../internal/install/testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
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
			if m.Kind != "ConfigMap" || m.Name != "isthmus-node" {
				continue
			}
			for key, text := range m.Data {
				seen++
				path := filepath.Join(t.TempDir(), key)
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := readConfig(path); err != nil {
					t.Errorf("%s: %v\n%s", file, err, text)
				}
			}
		}
	}
	if seen == 0 {
		t.Error("no rendered charts")
	}
}
