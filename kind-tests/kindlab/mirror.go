package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A manifest that names no tag of an image, or the tag latest, makes a node ask the registry whenever it starts a Pod, also where the node has
// the image. So each node has a mirror of Docker Hub, as a static Pod, with the images of the tests and no others.

const (
	mirrorImage   = "localhost/isthmus-mirror:1"
	mirrorAddress = "127.0.0.1:5005"
	hub           = "docker.io/"
)

const mirrorHosts = `server = "https://registry-1.docker.io"
[host."http://` + mirrorAddress + `"]
  capabilities = ["pull", "resolve"]
`

const mirrorPod = `apiVersion: v1
kind: Pod
metadata: {name: mirror, namespace: kube-system}
spec:
  hostNetwork: true
  containers:
  - name: mirror
    image: ` + mirrorImage + `
    imagePullPolicy: IfNotPresent
    args: ["` + mirrorAddress + `", /mirror]
`

// mirrorOf makes an image of a mirror that has the images that have names on Docker Hub. What it is made of is put into dir.
func mirrorOf(images []image, program image, dir string) (image, error) {
	served := layer{name: "mirrored"}
	hashes := map[string]string{}
	put := func(name string, data []byte) {
		served.files = append(served.files, file{path: "mirror/" + name, mode: 0o644, text: data})
	}
	for _, i := range images {
		type blob struct {
			MediaType string `json:"mediaType"`
			Digest    string `json:"digest"`
			Size      int64  `json:"size"`
		}
		var (
			layers []blob
			diffs  []string
		)
		for _, l := range i.layers {
			packed := filepath.Join(dir, l.name+".tar")
			if hashes[l.name] == "" {
				sum, err := l.pack(packed)
				if err != nil {
					return image{}, err
				}
				hashes[l.name] = sum
				served.files = append(served.files, file{path: "mirror/blobs/sha256:" + sum, mode: 0o644, from: packed})
			}
			info, err := os.Stat(packed)
			if err != nil {
				return image{}, err
			}
			diffs = append(diffs, hashes[l.name])
			layers = append(layers, blob{"application/vnd.oci.image.layer.v1.tar", "sha256:" + hashes[l.name], info.Size()})
		}
		config, err := i.config(diffs)
		if err != nil {
			return image{}, err
		}
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256(config))
		manifest, err := json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers,
			"config": blob{"application/vnd.oci.image.config.v1+json", digest, int64(len(config))},
		})
		if err != nil {
			return image{}, err
		}
		put("blobs/"+digest, config)
		for _, n := range i.names {
			if name, tag, _ := strings.Cut(strings.TrimPrefix(n, hub), ":"); strings.HasPrefix(n, hub) {
				put("manifests/"+name+"/"+tag, manifest)
				put(fmt.Sprintf("manifests/%s/sha256:%x", name, sha256.Sum256(manifest)), manifest)
			}
		}
	}
	program.layers = append(program.layers, served)
	return program, nil
}

// startMirror starts it on a cluster's node, and waits until it answers.
func (l *lab) startMirror(ctx context.Context, c cluster) error {
	for name, text := range map[string]string{
		"/etc/containerd/certs.d/docker.io/hosts.toml": mirrorHosts, "/etc/kubernetes/manifests/isthmus-mirror.yaml": mirrorPod,
	} {
		cmd := exec.CommandContext(ctx, "docker", "exec", "--interactive", c.node(), "sh", "-c", `mkdir -p "$(dirname "$0")" && cat >"$0"`, name)
		cmd.Env, cmd.Stdin = append(os.Environ(), l.docker.env...), strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("write %s: %w: %s", name, err, tail(string(out)))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for {
		_, err := l.docker.do(ctx, "exec", c.node(), "curl", "--silent", "--fail", "http://"+mirrorAddress+"/v2/")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the mirror of images does not answer: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
