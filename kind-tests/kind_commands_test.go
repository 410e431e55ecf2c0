package kindtests

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Commands of scenarios in clusters with nodes; see TestKind.

// podTime bounds the wait for pods. It is long because a machine may be busy; nothing depends on its length.
const podTime = 90 * time.Second

func (s *scenario) ready(_ *testscript.TestScript, args []string) error {
	in, err := s.clusters(args)
	if err != nil {
		return err
	}
	return onEach(in, func(c *member) error {
		// What a Deployment is to make may not be there yet, and kubectl wait does not wait for that.
		err := poll(s.ctx, s.mesh.deadline, func() error {
			out, _, err := c.api.Kubectl(s.ctx, "", "-n", s.namespace, "get", "deployments,statefulsets", "-o",
				`jsonpath={range .items[?(@.spec.replicas>0)]}{.metadata.name}={.status.replicas}/{.spec.replicas} {end}`)
			if err == nil {
				err = allMade(out)
			}
			return err
		})
		if err != nil {
			return err
		}
		// Not kubectl wait: a Pod that goes while it is waited for takes all the time, or is an error.
		return poll(s.ctx, podTime, func() error {
			out, _, err := c.api.Kubectl(s.ctx, "", "-n", s.namespace, "get", "pods", "-o",
				`jsonpath={range .items[*]}{.metadata.name}={.metadata.deletionTimestamp}={.status.conditions[?(@.type=="Ready")].status} {end}`)
			if err == nil {
				err = allReady(out)
			}
			return err
		})
	})
}

// allReady looks at pods but those that are going: "name=deletion=ready", separated by spaces.
func allReady(out string) error {
	for f := range strings.FieldsSeq(out) {
		parts := strings.Split(f, "=")
		if len(parts) == 3 && parts[1] == "" && parts[2] != "True" {
			return fmt.Errorf("not ready: pod %s", parts[0])
		}
	}
	return nil
}

func allMade(out string) error {
	for f := range strings.FieldsSeq(out) {
		_, counts, _ := strings.Cut(f, "=")
		if have, want, _ := strings.Cut(counts, "/"); have != want {
			return fmt.Errorf("not all pods were made: %s", f)
		}
	}
	return nil
}

func (s *scenario) shell(ts *testscript.TestScript, args []string) error {
	out, errs, err := s.runShell(args)
	_, _ = ts.Stdout().Write([]byte(out))
	_, _ = ts.Stderr().Write([]byte(errs))
	return err
}

func (s *scenario) runShell(args []string) (stdout, stderr string, err error) {
	if len(args) != 3 {
		return "", "", errUsage
	}
	return s.runKubectl([]string{args[0], "exec", args[1], "--", "sh", "-c", args[2]})
}

func (s *scenario) always(ts *testscript.TestScript, args []string) error {
	return s.repeat(ts, args, func(matches bool) bool { return matches })
}

func (s *scenario) never(ts *testscript.TestScript, args []string) error {
	return s.repeat(ts, args, func(matches bool) bool { return !matches })
}

// repeat runs a command some times. That it fails is no matter: what it prints is looked at.
func (s *scenario) repeat(ts *testscript.TestScript, args []string, good func(matches bool) bool) error {
	if len(args) < 3 {
		return errUsage
	}
	times, err1 := strconv.Atoi(args[0])
	want, err2 := regexp.Compile("(?m)" + args[1])
	do := s.printing(args[2])
	if err := errors.Join(err1, err2); err != nil || do == nil || times < 1 {
		return errors.Join(errUsage, err)
	}
	for n := range times {
		out, errs, _ := do(args[3:])
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		if !good(want.MatchString(out)) {
			return fmt.Errorf("at time %d of %d, with %s, it printed:\n%s%s", n+1, times, args[1], out, errs)
		}
		if n == times-1 {
			_, _ = ts.Stdout().Write([]byte(out))
		}
	}
	return nil
}

func (s *scenario) pauseNode(_ *testscript.TestScript, args []string) error {
	verb, c, err := s.fault(args)
	if err != nil {
		return err
	}
	do := map[string]string{"pause": "pause", "resume": "unpause"}[verb]
	if do == "" || c.node == "" {
		return errUsage
	}
	_, _, err = run(s.ctx, "", "docker", do, c.node)
	return err
}

// A static pod ends when its manifest is taken away.
const (
	serverManifest = "/etc/kubernetes/manifests/kube-apiserver.yaml"
	awayManifest   = "/etc/kubernetes/kube-apiserver.yaml"
)

func (c *member) stopServer(ctx context.Context) error {
	if _, _, err := run(ctx, "", "docker", "exec", c.node, "mv", serverManifest, awayManifest); err != nil {
		return err
	}
	return poll(ctx, patience, func() error {
		if _, err := c.api.Get(ctx, "/livez"); err == nil {
			return errors.New("the API server still answers")
		}
		return nil
	})
}

func (c *member) startServer(ctx context.Context) error {
	if _, _, err := run(ctx, "", "docker", "exec", c.node, "mv", awayManifest, serverManifest); err != nil {
		return err
	}
	return poll(ctx, patience, func() error {
		_, err := c.api.Get(ctx, "/readyz")
		return err
	})
}

// healNode undoes what a scenario has left undone, which it only does when it fails.
func (c *member) healNode(ctx context.Context) error {
	_, _, _ = run(ctx, "", "docker", "unpause", c.node) // fails where it is not paused
	if err := c.nft(ctx, unblocked); err != nil {
		return err
	}
	if _, _, err := run(ctx, "", "docker", "exec", c.node, "test", "-e", awayManifest); err != nil {
		return nil //nolint:nilerr // it is where it belongs
	}
	return c.startServer(ctx)
}
