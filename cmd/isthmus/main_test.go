package main

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
)

// A terminal that goes away ends a verb in order, so that it cleans up; under nohup it goes on.
func TestHangupEndsUnlessIgnored(t *testing.T) {
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("the tests run under nohup")
	}
	if !slices.Contains(endingSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("SIGHUP kills, and leaves everything behind")
	}
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	if slices.Contains(endingSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("nohup is not heeded")
	}
}
