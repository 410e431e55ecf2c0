package datagram

import (
	"errors"
	"syscall"
)

// Receive calls f with each datagram that comes, until one can't be received, and returns why. What f gets holds until it returns.
func (s *Socket) Receive(f func([]byte)) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		buffer := buffers.Get().(*[MaxPayload + 1]byte) // nothing else is put in
		defer buffers.Put(buffer)
		for {
			var n int
			n, failed = syscall.Read(int(fd), buffer[:])
			switch {
			case failed == nil:
				f(buffer[:n])
			case errors.Is(failed, syscall.EINTR):
			case errors.Is(failed, syscall.EAGAIN):
				return false // called again when there is more
			default:
				return true
			}
		}
	})
	if err == nil {
		err = failed
	}
	return err
}
