package main

import (
	"archive/tar"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// small is an image of the one program that builds in no time.
func small(t *testing.T) {
	t.Helper()
	all := images
	images = []image{{name: "capture", programs: []string{"isthmus-capture", "isthmus-none"}, user: 15000, title: "A test"}}
	t.Cleanup(func() { images = all })
}

func write(t *testing.T, tag string) (string, []built) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds a program; run it without -short")
	}
	root, err := moduleRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "images.tar")
	b := builder{root: root, arch: "amd64", tag: tag, registry: "registry.example/isthmus"}
	digests, err := b.write(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	return file, digests
}

// TestReproducible: whoever builds the same sources gets the same digests, and can compare them with what is published.
func TestReproducible(t *testing.T) {
	small(t)
	first, a := write(t, "dev")
	second, b := write(t, "dev")
	if a[0].digest != b[0].digest {
		t.Errorf("two builds: %v and %v", a[0].digest, b[0].digest)
	}
	x, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(x, y) {
		t.Error("the archives of two builds differ")
	}
	if _, other := write(t, "v1.2.3"); other[0].digest == a[0].digest {
		t.Error("another release has the same digest: the comparison can't fail")
	}
}

func TestImage(t *testing.T) {
	small(t)
	file, _ := write(t, "v1.2.3")
	ref, err := name.NewTag("registry.example/isthmus/capture:v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	got, err := tarball.ImageFromPath(file, &ref)
	if err != nil {
		t.Fatal(err)
	}
	config, err := got.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want := v1.Config{
		User: "15000:15000", Entrypoint: []string{"/isthmus-capture"}, Env: []string{"PATH=/"}, WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title": "A test", "org.opencontainers.image.version": "v1.2.3",
			"org.opencontainers.image.source": "https://github.com/isthmus-mesh/isthmus",
		},
	}
	if d := cmp.Diff(want, config.Config); d != "" || config.OS != "linux" || config.Architecture != "amd64" {
		t.Errorf("%s/%s, -want +got:\n%s", config.OS, config.Architecture, d)
	}
	// There is the program, and nothing else. One that the project doesn't have yet is left out.
	var files []string
	flat := mutate.Extract(got)
	defer flat.Close()
	for r := tar.NewReader(flat); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, h.Name)
		if h.Mode != 0o755 || h.Uid != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s: mode %o, user %d, time %v", h.Name, h.Mode, h.Uid, h.ModTime)
		}
	}
	if !slices.Equal(files, []string{"isthmus-capture"}) {
		t.Errorf("files: %v", files)
	}
}

// TestWebRoots: what a verifier of the public web needs is there, and every one is a certificate.
func TestWebRoots(t *testing.T) {
	n := 0
	for rest := webRoots(); ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !c.IsCA {
			t.Fatalf("certificate %d: %v", n+1, err)
		}
	}
	if n < 100 || n > 300 {
		t.Errorf("%d authorities: the public web has some 150", n)
	}
}
