// Package child runs programs that live as long as the test that started them, and no longer: when the test's process ends, by whatever
// end, the kernel ends them too. It also picks the ports they listen on.
//
// Everything here may be used by several goroutines.
package child

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Config says what to run.
type Config struct {
	Path string
	Args []string
	Env  []string // in addition to the test's own
	Dir  string   // working folder; default: the test's
	Log  string   // file that standard output and error are appended to
}

// Process is a running program.
type Process struct {
	name string
	log  string
	pid  int
	done chan struct{}
	err  error // of Wait; set before done is closed
}

// Start runs the program.
//
// It is started, and waited for, on a thread of its own: what "the parent has died" means to the kernel is the thread that forked.
func Start(c Config) (*Process, error) {
	p := &Process{name: c.Path, log: c.Log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		cmd, err := start(c)
		if err != nil {
			started <- fmt.Errorf("start %s: %w", c.Path, err)
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, <-started
}

func start(c Config) (*exec.Cmd, error) {
	out, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(c.Path, c.Args...) //nolint:gosec // G204: starting programs is what this is for
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, out, out
	cmd.Env = append(os.Environ(), c.Env...)
	// A group of its own: an interrupt from the terminal is for the test, which then ends what it started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	return cmd, cmd.Start()
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the program ended, with the end of its log; nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended (%w); the end of %s:\n%s", p.name, exitOf(p.err), p.log, Tail(p.log, 12))
	default:
		return nil
	}
}

var errExit0 = errors.New("exit status 0")

func exitOf(err error) error {
	if err == nil {
		return errExit0
	}
	return err
}

// Kill ends the program at once, as a crash would, and waits until it is gone.
func (p *Process) Kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks the program to end, and kills it when it has not by the end of grace. It reports whether it ended when asked.
func (p *Process) Stop(grace time.Duration) bool {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return true
	case <-time.After(grace):
		p.Kill()
		return false
	}
}

func (p *Process) signal(s syscall.Signal) {
	select {
	case <-p.done: // the number may be another's by now
	default:
		_ = syscall.Kill(p.pid, s)
	}
}
