package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// debian is the release that nodes are made of, and its packages: those of kind's own image, and the container runtime that kind builds
// from source.
const debian = "bookworm"

var nodePackages = []string{
	"systemd", "systemd-sysv", "conntrack", "iptables", "nftables", "iproute2", "ethtool", "util-linux", "mount", "kmod", "libseccomp2",
	"pigz", "e2fsprogs", "bash", "ca-certificates", "curl", "jq", "procps", "containerd", "runc", "containernetworking-plugins", "findutils",
	"iputils-ping", "busybox-static",
}

// rootfs returns an archive of a small Debian, made by its own tools. What is kept is as old as the cache: remove it for newer packages.
func (l *lab) rootfs(ctx context.Context) (string, error) {
	to := filepath.Join(l.cache, "rootfs-"+hash(debian, strings.Join(nodePackages, " "))+".tar")
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	if err := need("mmdebstrap"); err != nil {
		return "", err
	}
	l.say("a Debian for the nodes, into %s", to)
	part := filepath.Join(l.cache, ".part-rootfs.tar")
	defer func() { _ = os.Remove(part) }()
	_, err := output(ctx, nil, "mmdebstrap", "--variant=minbase", "--include="+strings.Join(nodePackages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		debian, part)
	if err != nil {
		return "", err
	}
	return to, os.Rename(part, to)
}

// tree is an archive that is looked into by path.
type tree struct {
	archive *os.File
	at      map[string]int64 // where a file's bytes begin
	headers map[string]*tar.Header
}

func openTree(name string) (*tree, error) {
	archive, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	t := &tree{archive: archive, at: map[string]int64{}, headers: map[string]*tar.Header{}}
	r := tar.NewReader(archive)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", name, err), archive.Close())
		}
		p := path.Clean("/" + h.Name)
		if t.at[p], err = archive.Seek(0, io.SeekCurrent); err != nil {
			return nil, errors.Join(err, archive.Close())
		}
		t.headers[p] = h
	}
}

// resolve follows links, those of folders on the way too.
func (t *tree) resolve(name string) (string, bool) {
	const maxLinks = 40
	done, rest := "/", strings.Split(strings.Trim(name, "/"), "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		h := t.headers[next]
		switch {
		case h == nil:
			return "", false
		case h.Typeflag == tar.TypeLink:
			next = path.Clean("/" + h.Linkname)
		case h.Typeflag == tar.TypeSymlink:
			if links++; links > maxLinks {
				return "", false
			}
			target := h.Linkname
			if !path.IsAbs(target) {
				target = path.Join(done, target)
			}
			rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
			next = "/"
		}
		done = next
	}
	return done, true
}

func (t *tree) read(name string) ([]byte, error) {
	p, ok := t.resolve(name)
	if !ok || t.headers[p].Typeflag != tar.TypeReg {
		return nil, fmt.Errorf("no file %s in %s", name, t.archive.Name())
	}
	data := make([]byte, t.headers[p].Size)
	_, err := t.archive.ReadAt(data, t.at[p])
	return data, err
}

// libraryDirs are where the dynamic linker looks.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib", "/usr/lib"}

// cut makes a layer of some programs and the libraries they need, at the paths by which they are asked for.
func (t *tree) cut(name string, programs ...string) (layer, error) {
	taken := map[string][]byte{}
	for queue := programs; len(queue) > 0; queue = queue[1:] {
		if taken[queue[0]] != nil {
			continue
		}
		data, err := t.read(queue[0])
		if err != nil {
			return layer{}, err
		}
		taken[queue[0]] = data
		needed, err := t.needed(data)
		if err != nil {
			return layer{}, fmt.Errorf("%s: %w", queue[0], err)
		}
		queue = append(queue, needed...)
	}
	out := layer{name: name}
	for _, p := range slices.Sorted(maps.Keys(taken)) {
		out.files = append(out.files, file{path: strings.TrimPrefix(p, "/"), mode: 0o755, text: taken[p]})
	}
	return out, nil
}

// needed returns the paths of what a program is linked with.
func (t *tree) needed(program []byte) (out []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			linker, failed := io.ReadAll(p.Open())
			if failed != nil {
				return nil, failed
			}
			out = append(out, strings.TrimRight(string(linker), "\x00"))
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, name := range libraries {
		i := slices.IndexFunc(libraryDirs, func(dir string) bool {
			_, ok := t.resolve(path.Join(dir, name))
			return ok
		})
		if i < 0 {
			return nil, fmt.Errorf("no library %s", name)
		}
		out = append(out, path.Join(libraryDirs[i], name))
	}
	return out, nil
}

// below returns the files in a folder, and the links: one module of iptables has several names.
func (t *tree) below(dir string) (out []string) {
	dir, _ = t.resolve(dir)
	for p, h := range t.headers {
		if path.Dir(p) == dir && h.Typeflag != tar.TypeDir {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}
