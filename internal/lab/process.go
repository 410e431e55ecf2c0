package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// starter starts processes, all from one thread of its own: "die with parent" means, to the kernel, the thread that
// started them.
type starter struct {
	jobs chan func()
	done chan struct{}
	die  bool
}

func newStarter(die bool) *starter {
	s := &starter{die: die}
	if !die {
		return s
	}
	s.jobs, s.done = make(chan func()), make(chan struct{})
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		for job := range s.jobs {
			job()
		}
	}()
	return s
}

func (s *starter) close() {
	if s.jobs != nil {
		close(s.jobs)
		<-s.done
		s.jobs = nil
	}
}

// spec of one process.
type command struct {
	path string
	args []string
	env  []string
	dir  string
	log  string // file that takes standard output and error, appended to
}

// run starts the command in a session of its own, so that it outlives us and our terminal.
func (s *starter) run(c command) (running, error) {
	logFile, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640) //nolint:gosec // G302: logs are read by the group
	if err != nil {
		return running{}, err
	}
	defer func() { _ = logFile.Close() }()
	cmd := exec.Command(c.path, c.args...) //nolint:gosec // G204: starting programs is what this is for
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.dir, c.env, logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.jobs == nil {
		err = cmd.Start()
	} else {
		dieWithParent(cmd.SysProcAttr)
		ran := make(chan struct{})
		s.jobs <- func() { defer close(ran); err = cmd.Start() }
		<-ran
	}
	if err != nil {
		return running{}, err
	}
	r := running{Pid: cmd.Process.Pid, Started: identity(cmd.Process.Pid)}
	// Nobody waits for it here: alive reaps it when it is our own child, init when we are gone.
	if err := cmd.Process.Release(); err != nil {
		return running{}, err
	}
	return r, nil
}

// alive reports whether exactly that process still runs.
func (r running) alive() bool {
	if r.Pid <= 0 || r.Started == "" {
		return false
	}
	_, _ = syscall.Wait4(r.Pid, nil, syscall.WNOHANG, nil) // reaps our own dead child; of others, it knows nothing
	return identity(r.Pid) == r.Started
}

// signal sends sig to exactly that process; nothing happens when it is gone.
func (r running) signal(sig os.Signal) error {
	p, err := os.FindProcess(r.Pid) // holds on to the process where the system can: its id can't change hands from here on
	if err != nil {
		return nil //nolint:nilerr // no such process: that is what was wanted
	}
	defer func() { _ = p.Release() }()
	if !r.alive() {
		return nil
	}
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("pid %d: %w", r.Pid, err)
	}
	return nil
}

// gone waits until the process has ended.
func (r running) gone(ctx context.Context) error {
	for wait := time.Millisecond; r.alive(); wait = min(2*wait, 50*time.Millisecond) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("pid %d is still there: %w", r.Pid, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
	return nil
}

// kill ends it at once, as a crash would.
func (r running) kill(ctx context.Context) error {
	if err := r.signal(syscall.SIGKILL); err != nil {
		return err
	}
	return r.gone(ctx)
}

// stop asks it to end, and kills it when it has not by the end of grace.
func (r running) stop(ctx context.Context, grace time.Duration) error {
	// One that is paused hears it once it goes on.
	if err := errors.Join(r.signal(syscall.SIGTERM), r.signal(syscall.SIGCONT)); err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if r.gone(patient) == nil {
		return nil
	}
	return r.kill(ctx)
}
