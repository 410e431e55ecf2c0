package kindtests

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Commands that declare something, and the one that waits until it has been heard.

func (s *scenario) makeNamespace(_ *testscript.TestScript, args []string) error {
	in, err := s.clusters(args)
	if err != nil {
		return err
	}
	s.in = append(s.in, in...)
	return onEach(in, func(c *member) error { return c.makeNamespace(s.ctx, s.namespace) })
}

func (s *scenario) apply(ts *testscript.TestScript, args []string) error {
	text, in, err := s.manifest(ts, args)
	if err != nil {
		return err
	}
	return onEach(in, func(c *member) error {
		_, _, err := c.api.Kubectl(s.ctx, text, "-n", s.namespace, "apply", "-f", "-")
		return err
	})
}

// togetherTries is how often objects are made anew that fell into different seconds.
const togetherTries = 10

func (s *scenario) together(ts *testscript.TestScript, args []string) error {
	text, in, err := s.manifest(ts, args)
	if err != nil {
		return err
	}
	do := func(verb string, c *member, more ...string) (string, error) {
		out, _, failed := c.api.Kubectl(s.ctx, text, append([]string{"-n", s.namespace, verb, "-f", "-"}, more...)...)
		return out, failed
	}
	for range togetherTries {
		if err = s.tick(ts, nil); err != nil {
			return err
		}
		var (
			mu     sync.Mutex
			stamps = map[string]bool{}
		)
		err = onEach(in, func(c *member) error {
			out, failed := do("create", c, "-o", `jsonpath={.metadata.creationTimestamp}{"\n"}`)
			mu.Lock()
			defer mu.Unlock()
			for line := range strings.Lines(out) {
				stamps[line] = true
			}
			return failed
		})
		if err != nil || len(stamps) == 1 {
			return err
		}
		if err = onEach(in, func(c *member) error {
			_, failed := do("delete", c)
			return failed
		}); err != nil {
			return err
		}
	}
	return fmt.Errorf("the objects were never made within one second, in %d tries", togetherTries)
}

// tick waits for the next whole second of the clock that all API servers here share.
func (s *scenario) tick(_ *testscript.TestScript, args []string) error {
	if len(args) != 0 {
		return errUsage
	}
	now := time.Now()
	next := now.Truncate(time.Second).Add(time.Second + 10*time.Millisecond)
	select {
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-time.After(next.Sub(now)):
		return nil
	}
}

func (s *scenario) kubectl(ts *testscript.TestScript, args []string) error {
	out, errs, err := s.runKubectl(args)
	_, _ = ts.Stdout().Write([]byte(out))
	_, _ = ts.Stderr().Write([]byte(errs))
	return err
}

func (s *scenario) runKubectl(args []string) (stdout, stderr string, err error) {
	if len(args) < 2 {
		return "", "", errUsage
	}
	c, err := s.mesh.member(args[0])
	if err != nil {
		return "", "", err
	}
	return c.api.Kubectl(s.ctx, "", append([]string{"-n", s.namespace}, args[1:]...)...)
}

func (s *scenario) isthmus(ts *testscript.TestScript, args []string) error {
	out, _, err := s.runIsthmus(args)
	_, _ = ts.Stdout().Write([]byte(out))
	return err
}

func (s *scenario) runIsthmus(args []string) (stdout, stderr string, err error) {
	if len(args) < 2 {
		return "", "", errUsage
	}
	in, err := s.clusters(strings.Split(args[0], ","))
	if err != nil {
		return "", "", err
	}
	stdout, err = isthmus(s.ctx, in, args[1:]...)
	return stdout, "", err
}

const mark = `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": %[1]q}, "spec": {"ports": [{"port": 1}]}}
---
{"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": {"name": %[1]q}}
`

// settle waits until every cluster that has the namespace has heard all that was declared before, and done what follows from it. It
// exports a mark from each, and sees its import in each. What a control plane says, it says whole and in order; and what it writes, in the order
// of names: the mark's is the last. The mark goes again, and its export's status is nobody's to see.
func (s *scenario) settle() error {
	s.marks++
	name := func(c *member) string { return fmt.Sprintf("zzz-%d-%s", s.marks, c.name) }
	if err := onEach(s.in, func(c *member) error {
		_, _, err := c.api.Kubectl(s.ctx, fmt.Sprintf(mark, name(c)), "-n", s.namespace, "create", "-f", "-")
		return err
	}); err != nil {
		return err
	}
	return poll(s.ctx, s.mesh.deadline, func() error {
		var errs []error
		for _, at := range s.in {
			for _, of := range s.in {
				_, err := at.api.Get(s.ctx, "/apis/multicluster.x-k8s.io/v1beta1/namespaces/"+s.namespace+"/serviceimports/"+name(of))
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// onEach does something in several clusters at once.
func onEach(in []*member, do func(*member) error) error {
	m := mesh{members: in}
	return m.each(do)
}
