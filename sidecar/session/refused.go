package session

import (
	"errors"
	"net"
)

// refusedError is an error that says for people what an alert of TLS means here.
type refusedError struct {
	err   error
	words string
}

func (e *refusedError) Error() string { return e.words }
func (e *refusedError) Unwrap() error { return e.err }

// inWords says what it means that the called sidecar ended an inner handshake: an alert has no words of its own, and crypto/tls has but one for all that
// a server can say no to by the service that is asked for.
func inWords(err error) error {
	operation, _ := errors.AsType[*net.OpError](err)
	if operation == nil || operation.Op != "remote error" {
		return err
	}
	words := ""
	switch operation.Err.Error() {
	case "tls: internal error":
		words = "its sidecar refuses sessions for this service: a failover drill makes it look dead there, or it is not served there (isthmus drill list)"
	case "tls: no application protocol":
		words = "its sidecar refuses sessions of this protocol: the port speaks another one there"
	default:
		return err
	}
	return &refusedError{err, words}
}
