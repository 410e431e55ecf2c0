package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The image of a node is built without a registry: Debian's packages, kind's own files out of its module, and the programs that
// kind-tests/kubernetes builds. It is known by a hash of all that.

//go:embed node
var nodeFiles embed.FS

// Images that kubeadm asks for, and that kind's own image holds: they are looked for by these names.
const (
	registry     = "registry.k8s.io/"
	pauseImage   = registry + "pause:3.10.1"
	etcdImage    = registry + "etcd:3.6.5-0"
	corednsImage = registry + "coredns/coredns:v1.12.1"
	kindnetImage = "localhost/kindnet:1"
)

// hash is short and stands for all its parts.
func hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// image builds the image, and says what it is called.
func (l *lab) image(ctx context.Context) (err error) {
	if err = l.connect(ctx); err != nil {
		return err
	}
	wasUp := l.isUp()
	name, err := l.nodeImage(ctx)
	if !wasUp {
		err = errors.Join(err, l.down())
	}
	if err == nil {
		_, err = fmt.Fprintln(os.Stdout, name)
	}
	return err
}

// nodeImage returns the name of an image that the daemon has.
func (l *lab) nodeImage(ctx context.Context) (string, error) {
	if given := os.Getenv("ISTHMUS_KIND_IMAGE"); given != "" {
		if !l.docker.has(ctx, given) {
			l.say("pulling %s", given)
			if _, err := l.docker.do(ctx, "pull", given); err != nil {
				return "", err
			}
		}
		return given, nil
	}
	b, err := l.binaries(ctx)
	if err != nil {
		return "", err
	}
	own, err := l.ownPrograms(ctx, "pause", "kindnet")
	if err != nil {
		return "", err
	}
	parts, err := embedded()
	if err != nil {
		return "", err
	}
	for _, p := range []string{own["pause"], own["kindnet"]} {
		data, err := os.ReadFile(p)
		if err != nil {
			return "", err
		}
		parts = append(parts, string(data))
	}
	parts = append(parts, filepath.Base(b.api), filepath.Base(b.node), debian, strings.Join(nodePackages, " "), imageVersion)
	name := "isthmus-kind-node:" + b.release() + "-" + hash(parts...)
	if l.docker.has(ctx, name) {
		return name, nil
	}
	return name, l.buildNodeImage(ctx, name, b, own)
}

// imageVersion is changed together with the code below, for its hash is not among what the image's name is made of.
const imageVersion = "2"

func embedded() (parts []string, err error) {
	err = fs.WalkDir(nodeFiles, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := nodeFiles.ReadFile(path)
		parts = append(parts, path, string(data))
		return err
	})
	return parts, err
}

func (l *lab) buildNodeImage(ctx context.Context, name string, b binaries, own map[string]string) error {
	rootfs, err := l.rootfs(ctx)
	if err != nil {
		return err
	}
	l.say("building %s", name)
	dir, err := os.MkdirTemp(l.cache, ".part-image-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	images := filepath.Join(dir, "images.tar")
	if err = writeComponents(images, rootfs, b, own); err != nil {
		return err
	}
	build := filepath.Join(dir, "context")
	if err = l.nodeContext(ctx, build, rootfs, b); err != nil {
		return err
	}
	base := name + "-base"
	legacy := docker{env: append([]string{"DOCKER_BUILDKIT=0"}, l.docker.env...)} // BuildKit's own images would come from a registry
	if _, err = legacy.do(ctx, "build", "--quiet", "--network", "none", "--build-arg", "PAUSE="+pauseImage, "--tag", base, build); err != nil {
		return err
	}
	container := "isthmus-kind-build"
	_, _ = l.docker.do(ctx, "rm", "--force", "--volumes", container)
	if _, err = l.docker.do(ctx, "run", "--privileged", "--name", container, "--network", "none",
		"--volume", images+":/images.tar:ro", "--volume", filepath.Join(build, "preload")+":/preload:ro",
		"--entrypoint", "bash", base, "/preload"); err != nil {
		return err
	}
	_, err = l.docker.do(ctx, "commit", "--change", `ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]`, container, name)
	_, failed := l.docker.do(context.WithoutCancel(ctx), "rm", "--force", "--volumes", container)
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	// Other checkouts may still want theirs; one that is a week old has been in use for long enough.
	_, err = l.docker.do(ctx, "image", "prune", "--all", "--force", "--filter", "label=dev.isthmus.kind-node", "--filter", "until=168h")
	return err
}

// nodeContext lays out what node/Dockerfile copies.
func (l *lab) nodeContext(ctx context.Context, dir, rootfs string, b binaries) error {
	kind, err := output(ctx, nil, "go", "-C", l.kindModule(), "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kind")
	if err != nil {
		return err
	}
	files := filepath.Join(dir, "files")
	if err = os.CopyFS(files, os.DirFS(filepath.Join(kind, "images", "base", "files"))); err != nil {
		return err
	}
	if _, err = output(ctx, nil, "chmod", "-R", "u+w", files); err != nil { // the module cache is read-only
		return err
	}
	for path, to := range map[string]string{
		"default-cni.yaml": "files/kind/manifests/default-cni.yaml", "default-storage.yaml": "files/kind/manifests/default-storage.yaml",
		"crictl": "files/usr/local/bin/crictl", "setup": "setup", "preload": "preload", "Dockerfile": "Dockerfile",
	} {
		var data []byte
		if data, err = nodeFiles.ReadFile("node/" + path); err != nil {
			return err
		}
		if err = put(filepath.Join(dir, to), data); err != nil {
			return err
		}
	}
	if err = put(filepath.Join(files, "kind", "version"), []byte(b.release()+"\n")); err != nil {
		return err
	}
	links := map[string]string{rootfs: filepath.Join(dir, "rootfs.tar")}
	for _, program := range []string{filepath.Join(b.node, "kubeadm"), filepath.Join(b.node, "kubelet"), filepath.Join(b.api, "kubectl")} {
		links[program] = filepath.Join(files, "usr", "bin", filepath.Base(program))
	}
	for from, to := range links {
		if err = os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err = os.Link(from, to); err != nil { // both are in the cache
			return err
		}
	}
	return nil
}

func put(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o755)
}

// writeComponents writes the images that a node's pods of Kubernetes itself are made of.
func writeComponents(to, rootfs string, b binaries, own map[string]string) error {
	t, err := openTree(rootfs)
	if err != nil {
		return err
	}
	defer func() { _ = t.archive.Close() }()
	tools, err := netTools(t)
	if err != nil {
		return err
	}
	images := []image{
		program(own["pause"], pauseImage),
		program(filepath.Join(b.api, "etcd"), etcdImage),
		program(filepath.Join(b.node, "coredns"), corednsImage),
	}
	for _, name := range []string{filepath.Join(b.api, "kube-apiserver"), filepath.Join(b.api, "kube-controller-manager"), filepath.Join(b.node, "kube-scheduler")} {
		images = append(images, program(name, registry+filepath.Base(name)+":"+b.release()))
	}
	for from, name := range map[string]string{filepath.Join(b.node, "kube-proxy"): registry + "kube-proxy:" + b.release(), own["kindnet"]: kindnetImage} {
		i := program(from, name)
		i.layers = append([]layer{tools}, i.layers...)
		images = append(images, i)
	}
	return writeImages(to, images)
}

// netTools are what kube-proxy and kindnet run: iptables and its modules, ip, nft, conntrack.
func netTools(t *tree) (layer, error) {
	const tables = "/usr/sbin/xtables-nft-multi"
	programs := append([]string{tables, "/usr/sbin/nft", "/usr/sbin/conntrack", "/usr/bin/ip"}, t.modules()...)
	out, err := t.cut("nettools", programs...)
	if err != nil {
		return layer{}, err
	}
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		out.files = append(out.files, file{path: "usr/sbin/" + name, mode: 0o777, link: filepath.Base(tables)})
	}
	for _, dir := range []string{"run/", "tmp/", "etc/"} {
		out.files = append(out.files, file{path: dir, mode: 0o755})
	}
	return out, nil
}

// modules are those of iptables; which folder they are in depends on the processor.
func (t *tree) modules() []string {
	for _, dir := range libraryDirs {
		if found := t.below(dir + "/xtables"); len(found) > 0 {
			return found
		}
	}
	return nil
}
