//go:build !linux

package datagram

// Receive calls f with each datagram that comes, until one can't be received, and returns why. What f gets holds until it returns.
func (s *Socket) Receive(f func([]byte)) error {
	buffer := buffers.Get().(*[MaxPayload + 1]byte) // nothing else is put in
	defer buffers.Put(buffer)
	for {
		n, err := s.Read(buffer[:])
		if err != nil {
			return err
		}
		f(buffer[:n])
	}
}
