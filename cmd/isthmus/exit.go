package main

import (
	"context"
	"errors"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
	"github.com/isthmus-mesh/isthmus/internal/lab"
)

// The exit codes.
const (
	exitOK = iota
	exitFinding
	exitUsage
	exitUnreachable
	exitTimeout
)

// finding is an error that was found, and printed, by a verb that did what it was asked: something is not as it should be.
type finding struct{ what string }

func (f finding) Error() string { return f.what }

// usage is an error of whoever typed the command.
type usage struct{ err error }

func (u usage) Error() string { return u.err.Error() }
func (u usage) Unwrap() error { return u.err }

func isUsage(err error) bool {
	_, is := errors.AsType[usage](err)
	return is
}

// advised is an error with what to do about it, in lines of their own. The advice is given too when the verb was interrupted.
type advised struct {
	err    error
	advice string
}

func (a advised) Error() string { return a.err.Error() + "\n" + a.advice }
func (a advised) Unwrap() error { return a.err }

// briefly is an error that was printed already, in other words.
type briefly struct {
	err  error
	what string
}

func (b briefly) Error() string { return b.what }
func (b briefly) Unwrap() error { return b.err }

func exitCode(err error) int {
	var u usage
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &u):
		return exitUsage
	case errors.Is(err, lab.ErrNoTarget), errors.Is(err, kubeaccess.ErrNoContext):
		return exitUsage
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.Is(err, admin.ErrUnreachable), errors.Is(err, kubeaccess.ErrUnreachable), errors.Is(err, lab.ErrNotUp):
		return exitUnreachable
	default:
		return exitFinding
	}
}

// complaint is what is said on standard error when a verb ends with err.
func complaint(err error) string {
	var (
		u usage
		a advised
	)
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.Canceled) && errors.As(err, &a):
		return "isthmus: interrupted\n" + a.advice
	case errors.Is(err, context.Canceled):
		return "isthmus: interrupted"
	case errors.As(err, &u):
		return "isthmus: " + err.Error() + "\nRun it with --help to see how it is used."
	default:
		return "isthmus: " + err.Error()
	}
}
