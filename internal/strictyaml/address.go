package strictyaml

import (
	"fmt"
	"net"
	"strconv"
)

// Address is a host:port, as somebody wrote it. The empty one stands for none.
type Address string

// Check says what is wrong with the address. Whether somebody listens there, or could, is not looked at.
func (a Address) Check() error {
	if a == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(string(a))
	if err != nil {
		return fmt.Errorf("%q: want host:port", string(a))
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: want host:port, with a port from 0 to 65535", string(a))
	}
	return nil
}
