// Package dns answers for the names of the mesh, and for no others: <name>.<namespace>.svc.clusterset.local (KEP-1645 and its
// multicluster DNS schema) and <name>.<namespace>.svc.cluster.local, over UDP and TCP (RFC 1035, 7766, 6891). An application's
// resolver sends it those two zones; queries for others are refused, not forwarded.
//
// The sidecar runs one Server beside the application. It is safe for concurrent use.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	// Queries that are being answered at a time; past it, those over UDP are dropped, and connections wait.
	maxConcurrent  = 128
	maxConnections = 64
	// A TCP client that sends nothing, or takes nothing, for so long is gone.
	tcpTimeout = 5 * time.Second
	// maxTCP bounds an answer over TCP, in bytes.
	maxTCP = 1<<16 - 1
)

// Server answers queries.
type Server struct {
	// Lookup returns a service; nil when there is none (known), or when that can't be said now (not known). It may take a second.
	Lookup func(context.Context, topology.ServiceName) (service *topology.Service, known bool)
	Log    *slog.Logger
}

// Run answers queries until ctx ends. Either of the two may be nil; both are closed.
func (s *Server) Run(ctx context.Context, packets net.PacketConn, stream net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if packets != nil {
			_ = packets.Close()
		}
		if stream != nil {
			_ = stream.Close()
		}
	})
	defer stop()
	var wg sync.WaitGroup
	errs := make([]error, 2)
	if packets != nil {
		wg.Go(func() { errs[0] = s.servePackets(ctx, packets); cancel() })
	}
	if stream != nil {
		wg.Go(func() { errs[1] = s.serveStream(ctx, stream); cancel() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Server) servePackets(ctx context.Context, packets net.PacketConn) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxConcurrent)
	limit := udpLimit(packets.LocalAddr())
	buf := make([]byte, maxQuery+1) // one more, to tell what is too long
	for {
		n, from, err := packets.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP answer to one of our answers
		}
		select {
		case slots <- struct{}{}:
		default:
			continue // the client asks again
		}
		query := append([]byte(nil), buf[:n]...)
		wg.Go(func() {
			defer func() { <-slots }()
			if out := s.answer(ctx, query, limit); out != nil {
				_, _ = packets.WriteTo(out, from) // lost like any packet
			}
		})
	}
}

// udpLimit returns the limit of answers over UDP (answer). Beyond the loopback anybody may write the address of a third into a query, and
// what is long goes there: so whoever is to get more than the least that a client takes has to ask over TCP, where they can't.
func udpLimit(at net.Addr) int {
	if a, ok := at.(*net.UDPAddr); ok && a.IP.IsLoopback() {
		return 0
	}
	return minUDP
}

func (s *Server) serveStream(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxConnections)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := ln.Accept()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			time.Sleep(10 * time.Millisecond) // no file descriptors: some will come free
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.serveConn(ctx, c)
		})
	}
}

// serveConn answers the queries of one connection, one after the other.
func (s *Server) serveConn(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { _ = c.Close() }()
	for {
		if err := c.SetDeadline(time.Now().Add(tcpTimeout)); err != nil {
			return
		}
		var head [2]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		size := int(binary.BigEndian.Uint16(head[:]))
		if size > maxQuery {
			return
		}
		query := make([]byte, size)
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		out := s.answer(ctx, query, maxTCP)
		if out == nil {
			return
		}
		framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(out)), uint16(len(out))) //nolint:gosec // G115: answer keeps to maxTCP
		if _, err := c.Write(append(framed, out...)); err != nil {
			return
		}
	}
}
