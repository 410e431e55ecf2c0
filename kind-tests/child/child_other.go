//go:build !linux

package child

import "syscall"

// dieWithParent does nothing where the kernel can't: there, a test that is killed leaves what it started.
func dieWithParent(*syscall.SysProcAttr) {}
