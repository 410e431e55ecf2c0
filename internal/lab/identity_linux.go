package lab

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
)

// identity returns what tells the present process of that id from any other that ever has it: when this machine booted
// and how long after that the process started (proc(5): stat, field 22). It is empty when no such process runs.
//
// One that has ended and waits for its parent doesn't run. But a program of several threads that was killed looks so
// from when its first thread has ended, while the others still hold its ports: then it runs.
func identity(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field is the program's name in brackets; it may hold anything, brackets too.
	_, rest, ok := bytes.Cut(stat, []byte("("))
	end := bytes.LastIndexByte(rest, ')')
	if !ok || end < 0 {
		return ""
	}
	const stateField, threadsField, startField = 0, 20 - 3, 22 - 3 // counted from field 3, the first after the name
	fields := strings.Fields(string(rest[end+1:]))
	if len(fields) <= startField {
		return ""
	}
	if ended := fields[stateField] == "Z" || fields[stateField] == "X"; ended && len(fields[threadsField]) == 1 && fields[threadsField] <= "1" {
		return ""
	}
	return bootID() + "/" + fields[startField]
}

var bootID = sync.OnceValue(func() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "boot"
	}
	return strings.TrimSpace(string(id))
})

func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
