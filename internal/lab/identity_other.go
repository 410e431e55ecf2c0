//go:build !linux

package lab

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// identity returns what tells the present process of that id from any other that ever has it: its start time, as ps
// knows it. It is empty when no such process runs.
func identity(pid int) string {
	out, err := exec.Command("ps", "-o", "stat=,lstart=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return ""
	}
	state, started, ok := strings.Cut(strings.TrimSpace(string(out)), " ")
	if !ok || strings.HasPrefix(state, "Z") {
		return ""
	}
	return strings.TrimSpace(started)
}

// dieWithParent does nothing: only Linux offers it.
func dieWithParent(*syscall.SysProcAttr) {}
