//go:build !linux

package netns

import (
	"context"
	"fmt"
	"net"
)

var errLinux = fmt.Errorf("%w: they are Linux's", ErrUnavailable)

// Available returns why there can be no such networks here.
func Available() error { return errLinux }

// Make fails.
func (n Network) Make(context.Context) error { return errLinux }

// Attach fails.
func (n Network) Attach(context.Context) error { return errLinux }

// Exists reports false.
func (n Network) Exists() bool { return false }

// Remove has nothing to remove.
func (n Network) Remove(context.Context) error { return nil }

// Do fails.
func Do(string, func() error) error { return errLinux }

// Dial fails.
func Dial(context.Context, string, string, string) (net.Conn, error) { return nil, errLinux }

// DialAs fails.
func DialAs(context.Context, string, int, string, string) (net.Conn, error) { return nil, errLinux }

// Command fails.
func Command(string, string, []string) (string, []string, error) { return "", nil, errLinux }
