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
// and how long after that the process started (proc(5): stat, field 22). It is empty when no such process runs;
// one that has ended and waits for its parent doesn't.
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
	fields := strings.Fields(string(rest[end+1:])) // from field 3 on
	const stateField, startField = 3 - 3, 22 - 3
	if len(fields) <= startField || fields[stateField] == "Z" || fields[stateField] == "X" {
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
