package main

import (
	"archive/tar"
	"bytes"
	"context"
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
)

// image is one of the project's.
type image struct {
	name     string
	programs []string // those that the project has; the first is the entry point
	user     int
	title    string
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
		packed, err := layer(program, p)
		if err != nil {
			return nil, err
		}
		// A layer each: a node that has one program of a release keeps it.
		if made, err = mutate.Append(made, mutate.Addendum{Layer: packed, History: v1.History{CreatedBy: "deploy/images " + p}}); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// layer packs a program alone. There is no /etc/passwd: the programs look no user up. Nor are there certificates: they trust
// nobody but the mesh's own authorities and the API server's, which comes with the service account.
func layer(file, as string) (v1.Layer, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	if err := w.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: as, Mode: 0o755, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
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
