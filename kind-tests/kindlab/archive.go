package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

// Images are written as "docker save" writes them, by ourselves: the same files make the same image, and no daemon is asked.

// image is what a container starts from.
type image struct {
	names  []string
	layers []layer // from the ground up; images that share one hold it once
	start  []string
	env    []string
}

// layer is a list of files.
type layer struct {
	name  string
	files []file
}

// file is one of a layer. It has text, or is a link, or is read from the machine; with none of these it is a folder.
type file struct {
	path string
	mode int64
	text []byte
	link string
	from string
}

// writeImages writes an archive.
func writeImages(to string, images []image) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	archive := tar.NewWriter(out)
	hashes := map[string]string{}
	for _, i := range images {
		for _, l := range i.layers {
			if hashes[l.name] == "" {
				if hashes[l.name], err = l.addTo(archive); err != nil {
					return fmt.Errorf("layer %s: %w", l.name, err)
				}
			}
		}
	}
	var (
		manifest []map[string]any
		text     []byte
	)
	for n, i := range images {
		var layers, hash []string
		for _, l := range i.layers {
			layers, hash = append(layers, l.name+".tar"), append(hash, hashes[l.name])
		}
		if text, err = i.config(hash); err != nil {
			return err
		}
		name := fmt.Sprintf("%d.json", n)
		if err = add(archive, file{path: name, mode: 0o644, text: text}); err != nil {
			return err
		}
		manifest = append(manifest, map[string]any{"Config": name, "RepoTags": i.names, "Layers": layers})
	}
	text, err = json.Marshal(manifest)
	if err != nil {
		return err
	}
	if err = add(archive, file{path: "manifest.json", mode: 0o644, text: text}); err != nil {
		return err
	}
	return archive.Close()
}

// config says what an image is, given the hashes of its layers.
func (i image) config(layers []string) ([]byte, error) {
	var ids []string
	for _, l := range layers {
		ids = append(ids, "sha256:"+l)
	}
	return json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": i.start, "Env": i.env},
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
}

// addTo writes a layer, and returns its hash. Its length stands before it, so it is written to a file first.
func (l layer) addTo(archive *tar.Writer) (hash string, err error) {
	dir, err := os.MkdirTemp("", "layer-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	packed := filepath.Join(dir, "layer.tar")
	if hash, err = l.pack(packed); err != nil {
		return "", err
	}
	return hash, add(archive, file{path: l.name + ".tar", mode: 0o644, from: packed})
}

// pack writes a layer to a file, and returns its hash.
func (l layer) pack(to string) (hash string, err error) {
	out, err := os.Create(to)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	inner := tar.NewWriter(io.MultiWriter(out, sum))
	for _, f := range l.files {
		if err = add(inner, f); err != nil {
			return "", err
		}
	}
	if err = inner.Close(); err != nil { // it writes the end, which counts
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func add(w *tar.Writer, f file) error {
	h := &tar.Header{Name: f.path, Mode: f.mode, Size: int64(len(f.text)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	switch {
	case f.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
	case f.from != "":
		return addFrom(w, h, f.from)
	case f.text == nil:
		h.Typeflag = tar.TypeDir
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(f.text)
	return err
}

func addFrom(w *tar.Writer, h *tar.Header, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	h.Size = info.Size()
	if err = w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}

// program is an image of one static program.
func program(from string, names ...string) image {
	base := filepath.Base(from)
	return image{
		names:  names,
		layers: []layer{{base, []file{{path: "usr/local/bin/" + base, mode: 0o755, from: from}}}},
		start:  []string{"/usr/local/bin/" + base},
		env:    []string{"PATH=" + searchPath},
	}
}

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
