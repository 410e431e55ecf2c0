// Package relay copies two streams into each other until both directions have ended.
//
// A direction that ends cleanly is passed on as a half-close, so that the other one goes on. A direction that breaks breaks
// both: what was cut short must never look complete.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// Stream is one side: a connection that may know how to close only its sending half, and how to end with an error.
type Stream = io.ReadWriteCloser

// CloseWriter ends the sending half: the peer reads EOF and may go on sending. *net.TCPConn and *tls.Conn have it.
type CloseWriter interface{ CloseWrite() error }

// Aborter ends a stream so that its peer sees an error, not EOF.
type Aborter interface{ Abort(err error) }

// Stats counts the bytes that were copied.
type Stats struct {
	AToB, BToA int64
}

// Pipe copies between a and b until both directions have ended, one broke, or ctx ended; then it closes both.
// The error is the first that broke a direction, or the cause of ctx's end; nil when both ended with EOF.
func Pipe(ctx context.Context, a, b Stream) (Stats, error) {
	var (
		stats Stats
		first error
		once  sync.Once
		wg    sync.WaitGroup
	)
	broken := func(err error) {
		once.Do(func() {
			first = err
			abort(a, err)
			abort(b, err)
		})
	}
	stop := context.AfterFunc(ctx, func() { broken(context.Cause(ctx)) })
	wg.Go(func() {
		if err := oneWay(b, a, &stats.AToB); err != nil {
			broken(err)
		}
	})
	if err := oneWay(a, b, &stats.BToA); err != nil {
		broken(err)
	}
	wg.Wait()
	stop()
	once.Do(func() {}) // what first holds is final from here on
	return stats, errors.Join(first, ignoreClosed(a.Close(), first), ignoreClosed(b.Close(), first))
}

func oneWay(dst, src Stream, n *int64) error {
	var err error
	if *n, err = Copy(dst, src); err != nil {
		return err
	}
	if w, ok := dst.(CloseWriter); ok {
		// The reader may have gone already, and then the other direction says so.
		_ = w.CloseWrite()
		return nil
	}
	return dst.Close()
}

func abort(s Stream, err error) {
	if a, ok := s.(Aborter); ok {
		a.Abort(err)
		return
	}
	if c, ok := s.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // RST, not FIN
	}
	_ = s.Close()
}

// ignoreClosed drops what Close says after a break (the first error is the news), or about a connection that was closed.
func ignoreClosed(err, first error) error {
	if first != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
