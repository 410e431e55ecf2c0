package kindtests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"
)

// Commands that break something; only the scenarios of testdata/faults may use them.

func (s *scenario) control(_ *testscript.TestScript, args []string) error {
	verb, c, err := s.fault(args)
	if err != nil {
		return err
	}
	switch verb {
	case "kill":
		c.control.Kill()
	case "stop":
		if !c.control.Stop(deadline) {
			return fmt.Errorf("control of %s did not end within %s of being asked to", c.name, deadline)
		}
	case "start":
		return c.runControl(s.ctx)
	case "forget":
		return c.forget()
	default:
		return errUsage
	}
	return nil
}

// forget takes away what control has on disk of its peers; who it is itself, it still knows.
func (c *member) forget() error {
	state := filepath.Join(c.dir, "control")
	return errors.Join(os.RemoveAll(filepath.Join(state, "federation")), os.Remove(filepath.Join(state, "peers-heard.json")))
}

func (s *scenario) apiserver(_ *testscript.TestScript, args []string) error {
	verb, c, err := s.fault(args)
	if err != nil {
		return err
	}
	if c.node != "" {
		switch verb {
		case "stop":
			return c.stopServer(s.ctx)
		case "start":
			return c.startServer(s.ctx)
		default:
			return errUsage
		}
	}
	switch verb {
	case "kill":
		c.cluster.KillServer()
	case "start":
		return c.cluster.StartServer(s.ctx)
	default:
		return errUsage
	}
	return nil
}

func (s *scenario) fault(args []string) (verb string, c *member, err error) {
	if len(args) != 2 {
		return "", nil, errUsage
	}
	c, err = s.mesh.member(args[1])
	return args[0], c, err
}

// heal starts again what a scenario left dead, and gives back what it took, which it only does when it fails.
func (m *mesh) heal(ctx context.Context) error {
	if m.members[0].node != "" {
		return m.each(func(c *member) error { return c.healNode(ctx) })
	}
	if err := m.each(func(c *member) error { return c.heal(ctx) }); err != nil {
		return err
	}
	return m.introduce(ctx)
}

func (c *member) heal(ctx context.Context) error {
	if _, err := c.api.Get(ctx, "/readyz"); err != nil {
		if err := c.cluster.StartServer(ctx); err != nil {
			return err
		}
	}
	text, err := role()
	if err != nil {
		return err
	}
	if _, _, err := c.api.Kubectl(ctx, text, "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		return err
	}
	if c.control.Err() == nil {
		return nil
	}
	return c.runControl(ctx)
}
