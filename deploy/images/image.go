package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// image is one of the project's.
type image struct {
	name     string
	programs []string // those that the project has; the first is the entry point
	user     int
	title    string
	roots    bool // with the public web's authorities: it fetches from addresses that users give it
}

// built is an image that was made.
type built struct {
	ref    name.Tag
	digest v1.Hash
}

// builder makes images of one architecture.
type builder struct {
	root, arch, tag, registry string
}

// write builds every image into one docker-archive and returns their digests in the order of images.
func (b *builder) write(ctx context.Context, file string) ([]built, error) {
	dir, err := os.MkdirTemp("", "isthmus-images-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	all := map[name.Tag]v1.Image{}
	var digests []built
	for _, i := range images {
		ref, err := name.NewTag(b.registry+"/"+i.name+":"+b.tag, name.StrictValidation)
		if err != nil {
			return nil, err
		}
		made, err := b.build(ctx, i, dir)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", i.name, err)
		}
		digest, err := made.Digest()
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", i.name, err)
		}
		all[ref] = made
		digests = append(digests, built{ref, digest})
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return nil, err
	}
	// Whoever loads the archive while it is written would load half of it.
	if err := tarball.MultiWriteToFile(file+".new", all); err != nil {
		return nil, err
	}
	return digests, os.Rename(file+".new", file)
}

func (b *builder) build(ctx context.Context, i image, dir string) (v1.Image, error) {
	made, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: b.arch,
		OS:           "linux",
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User:       strconv.Itoa(i.user) + ":" + strconv.Itoa(i.user),
			Entrypoint: []string{"/" + i.programs[0]},
			Env:        []string{"PATH=/"},
			WorkingDir: "/",
			Labels: map[string]string{
				"org.opencontainers.image.title":   i.title,
				"org.opencontainers.image.version": b.tag,
				"org.opencontainers.image.source":  "https://" + module,
			},
		},
	})
	if err != nil {
		return nil, err
	}
	for _, p := range i.programs {
		if ok, err := b.there(p); err != nil || !ok {
			if err != nil {
				return nil, err
			}
			continue
		}
		program := filepath.Join(dir, p)
		if err := b.compile(ctx, p, program); err != nil {
			return nil, err
		}
		packed, err := packProgram(p, program)
		if err != nil {
			return nil, err
		}
		// A layer each: a node that has one program of a release keeps it.
		if made, err = mutate.Append(made, mutate.Addendum{Layer: packed, History: v1.History{CreatedBy: "deploy/images " + p}}); err != nil {
			return nil, err
		}
	}
	if !i.roots {
		return made, nil
	}
	return addRoots(made)
}

func addRoots(made v1.Image) (v1.Image, error) {
	packed, err := layer(rootsFile, 0o644, webRoots())
	if err != nil {
		return nil, err
	}
	return mutate.Append(made, mutate.Addendum{Layer: packed, History: v1.History{CreatedBy: "deploy/images " + rootsFile}})
}

func packProgram(name, file string) (v1.Layer, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return layer(name, 0o755, data)
}

// rootsFile is where crypto/x509 looks first; SSL_CERT_FILE names another.
const rootsFile = "etc/ssl/certs/ca-certificates.crt"

// webRoots are the authorities of the public web, as Mozilla has them, PEM; without those that count for some certificates only, which a file
// can't say. The mesh itself trusts none of them: they are for the keys of end users' tokens, and for the bundles of federated trust domains.
func webRoots() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a buffer takes all
		}
	}
	return out.Bytes()
}

// layer packs one file. There is no /etc/passwd: the programs look no user up.
func layer(as string, mode int64, data []byte) (v1.Layer, error) {
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	if err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: as, Mode: mode, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil },
		tarball.WithCompressedCaching)
}
