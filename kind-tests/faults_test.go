package kindtests

import (
	"fmt"

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
	default:
		return errUsage
	}
	return nil
}

func (s *scenario) apiserver(_ *testscript.TestScript, args []string) error {
	verb, c, err := s.fault(args)
	if err != nil {
		return err
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
