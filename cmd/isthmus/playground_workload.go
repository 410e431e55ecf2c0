package main

import (
	"fmt"
	"log/slog"
	"net"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/lab/sample"
)

// newPlaygroundWorkload is the sample application: what the playground's workloads run. Hidden, because only the playground starts it.
func newPlaygroundWorkload() *cobra.Command {
	var cfg sample.Config
	var httpAddress, tcpAddress string
	c := &cobra.Command{
		Use:    "workload",
		Short:  "The sample application",
		Hidden: true,
		Args:   noArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			var listen net.ListenConfig
			if cfg.HTTP, err = listen.Listen(c.Context(), "tcp", httpAddress); err != nil {
				return fmt.Errorf("workload: %w", err)
			}
			if cfg.TCP, err = listen.Listen(c.Context(), "tcp", tcpAddress); err != nil {
				_ = cfg.HTTP.Close()
				return fmt.Errorf("workload: %w", err)
			}
			if cfg.UDP, err = listen.ListenPacket(c.Context(), "udp", tcpAddress); err != nil {
				_, _ = cfg.HTTP.Close(), cfg.TCP.Close()
				return fmt.Errorf("workload: %w", err)
			}
			cfg.Log = slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))
			if cfg.Requests { // for programs to read
				cfg.Log = slog.New(slog.NewJSONHandler(c.ErrOrStderr(), nil))
			}
			cfg.Log.InfoContext(c.Context(), "serving", "cluster", cfg.Cluster, "workload", cfg.Workload, "http", httpAddress, "tcp", tcpAddress)
			return sample.Run(c.Context(), cfg)
		},
	}
	flags := c.Flags()
	flags.StringVar(&cfg.Cluster, "cluster", "", "which cluster it says it is in")
	flags.StringVar(&cfg.Workload, "workload", "", "which workload it says it is")
	flags.StringVar(&httpAddress, "http", "127.0.0.1:0", "where it speaks HTTP")
	flags.BoolVar(&cfg.Requests, "requests", false, "log each request, as JSON")
	flags.StringVar(&tcpAddress, "tcp", "127.0.0.1:0", "where it echoes bytes, and over UDP datagrams")
	return c
}
