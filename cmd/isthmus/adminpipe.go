package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
)

// newAdminPipe is what --context runs beside control. It is no verb for people.
func newAdminPipe() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:    "admin-pipe",
		Short:  "Connects standard input and output with an admin socket",
		Args:   noArgs,
		Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			return adminPipe(c.Context(), socket, c.InOrStdin(), c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&socket, "socket", controlSocket, "the admin `socket`")
	return c
}

// adminPipe ends when control has closed the connection, or ctx. The end of its input is passed on: control then closes. What reads
// the input may outlive it, as nothing ends a read of standard input.
func adminPipe(ctx context.Context, socket string, in io.Reader, out io.Writer) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("%w: %w", admin.ErrUnreachable, err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	if _, err = io.WriteString(out, kubeaccess.Greeting); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(conn, in)
		if c, ok := conn.(*net.UnixConn); ok {
			_ = c.CloseWrite()
		}
	}()
	if _, err = io.Copy(out, conn); errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
