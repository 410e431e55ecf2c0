package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/ready"
)

// The names of the readiness checks.
const (
	CheckIdentity      = "identity"
	CheckConfiguration = "configuration"
)

// longestLook bounds how long an expired SVID goes unnoticed when the clock was set or the machine slept.
const longestLook = time.Minute

// Checks makes identity and configuration conditions of c.
func (a *Agent) Checks(c *ready.Checks) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks = append(a.checks, c)
	a.lacking().tell(c)
}

// WaitReady waits until there is an SVID and a configuration, from control or from disk. The error names what is missing.
func (a *Agent) WaitReady(ctx context.Context) error {
	for {
		next := a.next()
		l := a.lacking()
		if l.identity == "" && l.configuration == "" {
			return nil
		}
		if !next(ctx, l.lasts) {
			return fmt.Errorf("agent: not ready: %s: %w", l, context.Cause(ctx))
		}
	}
}

// watch keeps the readiness checks true until ctx ends.
func (a *Agent) watch(ctx context.Context) error {
	for {
		next := a.next()
		a.mu.Lock()
		l := a.lacking()
		for _, c := range a.checks {
			l.tell(c)
		}
		a.mu.Unlock()
		if !next(ctx, l.lasts) {
			return nil
		}
	}
}

// next returns a function that waits until something has changed since the call of next, or time has passed; it reports
// whether to go on.
func (a *Agent) next() func(ctx context.Context, lasts time.Duration) bool {
	identity, problem := a.Identity.Changed(), a.problem.Changed()
	snapshots, status := a.Stream.Snapshots().Changed(), a.Stream.Status().Changed()
	return func(ctx context.Context, lasts time.Duration) bool {
		timer := time.NewTimer(lasts)
		defer timer.Stop()
		select {
		case <-identity:
		case <-problem:
		case <-snapshots:
		case <-status:
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
		return ctx.Err() == nil
	}
}

// lack is why an agent is not ready, by check; empty: the check passes.
type lack struct {
	identity, configuration string
	lasts                   time.Duration // how long this is true if nothing changes
}

func (a *Agent) lacking() lack {
	l := lack{lasts: longestLook}
	svid, err := a.Identity.SVID()
	now := a.cfg.Now()
	switch problem := a.problem.Load(); {
	case err == nil && now.Before(svid.Certificates[0].NotAfter):
		l.lasts = min(l.lasts, svid.Certificates[0].NotAfter.Sub(now))
	case problem != nil:
		l.identity = problem.Error()
	case err == nil:
		l.identity = "the SVID has expired"
	default:
		l.identity = "control has not issued an SVID yet"
	}
	if a.Stream.Snapshots().Load() == nil {
		l.configuration = "control has not sent any yet, and none is on disk"
		if problems := a.Stream.Problems(); len(problems) > 0 {
			l.configuration = errors.Join(problems...).Error()
		}
	}
	return l
}

// String names what is missing.
func (l lack) String() string {
	var missing []string
	if l.identity != "" {
		missing = append(missing, CheckIdentity+": "+l.identity)
	}
	if l.configuration != "" {
		missing = append(missing, CheckConfiguration+": "+l.configuration)
	}
	return strings.Join(missing, "; ")
}

func (l lack) tell(c *ready.Checks) {
	for name, reason := range map[string]string{CheckIdentity: l.identity, CheckConfiguration: l.configuration} {
		if reason == "" {
			c.Done(name)
		} else {
			c.Waiting(name, reason)
		}
	}
}
