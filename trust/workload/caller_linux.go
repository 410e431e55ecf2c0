package workload

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

var errChanged = errors.New("workload: the process that opened this connection has ended, or runs as another user now")

// readCaller asks the kernel. The answer is of the moment in which the other side connected.
func readCaller(c net.Conn) (Caller, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Caller{}, fmt.Errorf("workload: a caller over %s: want a Unix socket", c.LocalAddr().Network())
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Caller{}, err
	}
	var cred *syscall.Ucred
	if e := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); e != nil {
		return Caller{}, e
	}
	if err != nil {
		return Caller{}, fmt.Errorf("workload: SO_PEERCRED: %w", err)
	}
	who := Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}
	if who.PID > 0 {
		who.born, _ = birth(who.PID) // where /proc hides others' processes (hidepid), it can't be told
	}
	return who, who.check()
}

// check refuses a caller whose process is another, or another user's, than the one that connected: a connection may be inherited, and a
// process may give up being who it was. Of a process in another PID namespace, nothing can be told beyond what the kernel said.
func (c Caller) check() error {
	switch {
	case c.PID <= 0:
		return nil
	case c.born == 0:
		if err := syscall.Kill(int(c.PID), 0); errors.Is(err, syscall.ESRCH) {
			return errChanged
		}
		return nil
	}
	uid, err := effectiveUID(c.PID)
	if err != nil || uid != c.UID {
		return errChanged
	}
	if born, err := birth(c.PID); err != nil || born != c.born {
		return errChanged
	}
	return nil
}

// birth returns when a process was started: with its number, that is what makes it itself.
func birth(pid int32) (uint64, error) {
	const field = 22 - 3 // starttime of /proc/PID/stat (proc_pid_stat(5)), counted behind the name, which may hold anything
	b, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) <= field {
		return 0, fmt.Errorf("workload: /proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[field]), 10, 64)
}

// effectiveUID returns who a process is now.
func effectiveUID(pid int32) (uint32, error) {
	b, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line) // "Uid:", real, effective, saved, of the file system (proc_pid_status(5))
		if len(f) == 5 && string(f[0]) == "Uid:" {
			n, err := strconv.ParseUint(string(f[2]), 10, 32)
			return uint32(n), err
		}
	}
	return 0, fmt.Errorf("workload: /proc/%d/status names no user", pid)
}

func procFile(pid int32, name string) string { return "/proc/" + strconv.Itoa(int(pid)) + "/" + name }
