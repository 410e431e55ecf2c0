package main

import (
	"context"
	"os"
	"strings"
)

// The images that the tests' own pods run are made here too, and called like those that they stand in for: manifests written for the real
// ones run as they are.

// appImage answers and makes calls (kind-tests/kindlab/app).
const appImage = "localhost/isthmus-app:1"

// testImages are socat (kind-tests/kindlab/socat), and Debian's busybox where a shell is wanted.
func testImages(t *tree, own map[string]string) ([]image, error) {
	box, err := busybox(t)
	if err != nil {
		return nil, err
	}
	shell := func(names ...string) image {
		return image{names: names, layers: []layer{box}, start: nil, env: []string{"PATH=" + searchPath}}
	}
	return []image{
		program(own["socat"], "docker.io/alpine/socat:latest", "docker.io/alpine/socat:1.7.4.4", "docker.io/alpine/socat:1.8.0.0"),
		program(own["app"], appImage),
		shell("docker.io/library/busybox:latest", "docker.io/library/busybox:1.36", "docker.io/nicolaka/netshoot:latest"),
	}, nil
}

func busybox(t *tree) (layer, error) {
	data, err := t.read("/bin/busybox")
	if err != nil {
		return layer{}, err
	}
	out := layer{name: "busybox", files: []file{
		{path: "bin/busybox", mode: 0o755, text: data},
		{path: "tmp/", mode: 0o1777},
		{path: "etc/", mode: 0o755},
		{path: "etc/passwd", mode: 0o644, text: []byte("root:x:0:0::/:/bin/sh\n")},
	}}
	for name := range strings.FieldsSeq("sh echo cat date env grep head sed tr hostname id ip ls nc nslookup ping printf seq sleep sort sync tail tee test timeout true false uniq wc wget") {
		out.files = append(out.files, file{path: "bin/" + name, mode: 0o777, link: "busybox"})
	}
	return out, nil
}

func (l *lab) loadTestImages(ctx context.Context) error {
	own, err := l.ownPrograms(ctx, "socat", "app", "mirror")
	if err != nil {
		return err
	}
	rootfs, err := l.rootfs(ctx)
	if err != nil {
		return err
	}
	t, err := openTree(rootfs)
	if err != nil {
		return err
	}
	defer func() { _ = t.archive.Close() }()
	images, err := testImages(t, own)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "isthmus-mirror-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	mirror, err := mirrorOf(images, program(own["mirror"], mirrorImage), dir)
	if err != nil {
		return err
	}
	archive := l.file("test-images.tar")
	if err = writeImages(archive, append(images, mirror)); err != nil {
		return err
	}
	return each(func(c cluster) error {
		if err := l.loadInto(ctx, c, archive); err != nil {
			return err
		}
		return l.startMirror(ctx, c)
	})
}
