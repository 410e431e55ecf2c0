package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWriteImages(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.WriteFile(bin, []byte("#!program"), 0o600); err != nil {
		t.Fatal(err)
	}
	shared := layer{"shared", []file{{path: "etc/", mode: 0o755}, {path: "etc/a", mode: 0o644, text: []byte("a")}, {path: "b", link: "etc/a"}}}
	one := program(bin, "one:1", "one:2")
	one.layers = append([]layer{shared}, one.layers...)
	two := image{names: []string{"two:1"}, layers: []layer{shared}}
	first, second := filepath.Join(dir, "first.tar"), filepath.Join(dir, "second.tar")
	for _, to := range []string{first, second} {
		if err := writeImages(to, []image{one, two}); err != nil {
			t.Fatal(err)
		}
	}
	a, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the same images came out differently")
	}
	files := untar(t, a)
	if got, want := slices.Sorted(maps.Keys(files)), []string{"0.json", "1.json", "bin.tar", "manifest.json", "shared.tar"}; !slices.Equal(got, want) {
		t.Errorf("files %q, want %q: a layer that is shared stands once", got, want)
	}
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err = json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"shared.tar", "bin.tar"}, manifest[0].Layers); diff != "" {
		t.Errorf("layers: %s", diff)
	}
	inner := untar(t, files["bin.tar"])
	if string(inner["usr/local/bin/bin"]) != "#!program" {
		t.Errorf("the program is not in its layer, which has %q", slices.Collect(maps.Keys(inner)))
	}
}

func TestTreeResolves(t *testing.T) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []file{
		{path: "usr/", mode: 0o755},
		{path: "usr/lib/", mode: 0o755},
		{path: "lib", link: "usr/lib"},
		{path: "usr/lib/real.so", mode: 0o644, text: []byte("library")},
		{path: "usr/lib/name.so", link: "real.so"},
		{path: "usr/lib/loop", link: "loop"},
	} {
		if err := add(w, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "tree.tar")
	if err := os.WriteFile(name, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	tree, err := openTree(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tree.archive.Close() }()
	if data, err := tree.read("/lib/name.so"); err != nil || string(data) != "library" {
		t.Errorf("read through two links: %q, %v", data, err)
	}
	for _, missing := range []string{"/lib/other.so", "/lib/loop", "/lib"} {
		if data, err := tree.read(missing); err == nil {
			t.Errorf("read(%s) = %q, want an error", missing, data)
		}
	}
	if got, want := tree.below("/lib"), []string{"/usr/lib/loop", "/usr/lib/name.so", "/usr/lib/real.so"}; !slices.Equal(got, want) {
		t.Errorf("below /lib: %q, want %q", got, want)
	}
}

func untar(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	files, r := map[string][]byte{}, tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
