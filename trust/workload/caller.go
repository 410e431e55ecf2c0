package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// How many connections there may be at a time. A program that uses the Workload API has one.
const (
	maxConnections          = 1024
	maxConnectionsOfUID     = 128
	maxConnectionsOfNobodys = 32 // of all those together who have no identity here
)

// Caller is the process that opened a connection, as the kernel saw it at that moment (SO_PEERCRED, unix(7)).
type Caller struct {
	UID, GID uint32
	// PID is the process's in our PID namespace; 0 when it is not in ours, as that of another container.
	PID int32

	born uint64 // when the process was started, in the kernel's ticks; 0: not known
}

// overflowUID is who the kernel shows for a user whom our user namespace doesn't know (user_namespaces(7)).
const overflowUID = 65534

// Known tells whether UID is one user. The other one, "nobody", stands for anybody whom our user namespace doesn't know.
func (c Caller) Known() bool { return c.UID != overflowUID }

// String names the caller for a log.
func (c Caller) String() string { return fmt.Sprintf("uid %d pid %d", c.UID, c.PID) }

// callerInfo is what gRPC keeps of a connection.
type callerInfo struct {
	credentials.CommonAuthInfo

	caller Caller
}

// AuthType names how the caller is known.
func (callerInfo) AuthType() string { return "peer-credentials" }

// callerOf returns who opened the connection of a call.
func callerOf(ctx context.Context) (Caller, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, false
	}
	info, ok := p.AuthInfo.(callerInfo)
	return info.caller, ok
}

// doors counts connections.
type doors struct {
	mu      sync.Mutex
	all     int            // guarded by mu
	nobodys int            // guarded by mu
	ofUID   map[uint32]int // guarded by mu
}

var errFull = errors.New("workload: too many connections")

// enter lets a connection in, or says why not. leave takes it out.
func (d *doors) enter(uid uint32, nobody bool) (leave func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.all >= maxConnections:
		return nil, fmt.Errorf("%w: %d", errFull, d.all)
	case nobody && d.nobodys >= maxConnectionsOfNobodys:
		return nil, fmt.Errorf("%w of callers without an identity: %d", errFull, d.nobodys)
	case d.ofUID[uid] >= maxConnectionsOfUID:
		return nil, fmt.Errorf("%w of uid %d: %d", errFull, uid, d.ofUID[uid])
	}
	if d.ofUID == nil {
		d.ofUID = make(map[uint32]int)
	}
	count := func(n int) {
		d.all += n
		if nobody {
			d.nobodys += n
		}
		if d.ofUID[uid] += n; d.ofUID[uid] == 0 {
			delete(d.ofUID, uid)
		}
	}
	count(1)
	return sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		count(-1)
	}), nil
}

// peerCredentials are transport credentials that ask the kernel who is at the other end, and let so many in.
type peerCredentials struct{ s *Server }

// ServerHandshake looks who it is. Who has no identity is let in all the same, to be told so in the words of the API.
func (p peerCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := readCaller(raw)
	if err != nil {
		return nil, nil, p.s.turnedAway(c, err)
	}
	_, _, err = p.s.cfg.Source.Identities(c)
	leave, full := p.s.doors.enter(c.UID, errors.Is(err, ErrNobody))
	if full != nil {
		return nil, nil, p.s.turnedAway(c, full)
	}
	return &visit{Conn: raw, leave: leave}, callerInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, caller: c, // it never leaves the kernel
	}, nil
}

func (s *Server) turnedAway(c Caller, err error) error {
	if s.refusals.Allow() {
		s.cfg.Log.Warn("workload API: connection refused", "caller", c.String(), "error", err)
	}
	return err // gRPC closes the connection
}

// ClientHandshake is no part of a server.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("workload: for servers only")
}

// Info says what these credentials are.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peer-credentials"}
}

// Clone returns the same: there is nothing to change.
func (p peerCredentials) Clone() credentials.TransportCredentials { return p }

// OverrideServerName is for clients.
func (peerCredentials) OverrideServerName(string) error { return nil }

// visit is a connection that leaves when it is closed.
type visit struct {
	net.Conn
	leave func()
}

// Close closes the connection.
func (v *visit) Close() error {
	v.leave()
	return v.Conn.Close()
}
