// Command images builds the container images of the project without a container runtime or a registry: FROM scratch, one static
// program or two in each, and for those that fetch from the web its authorities. The same sources and the same Go make the same digests.
//
//	go run ./deploy/images -out bin/images.tar [-tag v1.2.3] [-arch amd64,arm64]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

const module = "github.com/isthmus-mesh/isthmus"

// images are those of the project.
var images = []image{
	{
		name: "control", programs: []string{"isthmus-control", "isthmus"}, user: 65532,
		roots: true,
		title: "Isthmus control plane", // and the CLI, through which administrators reach control's socket
	},
	{name: "gateway", programs: []string{"isthmus-gateway"}, user: 65532, title: "Isthmus gateway"},
	{
		name: "sidecar", programs: []string{"isthmus-sidecar", "isthmus-capture", "isthmus-cni"}, user: 15000,
		roots: true,
		title: "Isthmus sidecar and node proxy",
	},
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	out := flags.String("out", "bin/images.tar", "docker-archive to write; for more than one -arch, a name per architecture")
	tag := flags.String("tag", "dev", "tag of the images; a release's is built into the programs too")
	registry := flags.String("registry", "ghcr.io/isthmus-mesh", "registry and folder that the images are named after")
	arches := flags.String("arch", runtime.GOARCH, "architectures, separated by commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	all := strings.Split(*arches, ",")
	for _, arch := range all {
		file := *out
		if len(all) > 1 {
			ext := filepath.Ext(file)
			file = strings.TrimSuffix(file, ext) + "-" + arch + ext
		}
		b := builder{root: root, arch: arch, tag: *tag, registry: *registry}
		digests, err := b.write(ctx, file)
		if err != nil {
			return err
		}
		for _, d := range digests {
			if _, err := fmt.Fprintf(stdout, "%s@%s linux/%s\n", d.ref, d.digest, arch); err != nil {
				return err
			}
		}
	}
	return nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("looking for the sources: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// release is the shape of a tag that is built into the programs as their version.
var release = regexp.MustCompile(`^v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$`)

// compile builds a program of the project, static and stripped, without what differs between two checkouts of the same sources.
func (b *builder) compile(ctx context.Context, program, to string) error {
	ldflags := "-s -w -buildid="
	if release.MatchString(b.tag) {
		ldflags += " -X " + module + "/internal/version.release=" + b.tag
	}
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", to, "./cmd/"+program)
	c.Dir = b.root
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+b.arch, "GOFLAGS=", "GOAMD64=v1", "GOARM64=v8.0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s for %s: %w\n%s", program, b.arch, err, out)
	}
	return nil
}

// there reports whether the project has that program.
func (b *builder) there(program string) (bool, error) {
	_, err := os.Stat(filepath.Join(b.root, "cmd", program))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
