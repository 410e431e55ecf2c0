package configstream

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Resolve tells a program which service has an address now. gRPC calls it.
func (s *Server) Resolve(ctx context.Context, r *configv1.ResolveRequest) (*configv1.ResolveResponse, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if _, err := s.cfg.Peer(ctx); err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	address, err := netip.ParseAddr(r.GetAddress())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "address %q: want an IP address", clip(r.GetAddress()))
	}
	w := s.world.Load()
	if w == nil {
		return nil, status.Error(codes.Unavailable, "nothing is known yet")
	}
	out := new(configv1.ResolveResponse)
	if name, ok := w.at(address.Unmap()); ok {
		out.Service = name.String()
	}
	return out, nil
}

// Resolve asks control which service has an address; ok is false when none has. While control is away the error is ErrUnavailable.
func (c *Client) Resolve(ctx context.Context, address netip.Addr) (name topology.ServiceName, ok bool, err error) {
	conn := c.conn.Load()
	if conn == nil {
		return name, false, fmt.Errorf("configstream: address %s: %w", address, ErrUnavailable)
	}
	answer, err := configv1.NewConfigClient(*conn).Resolve(ctx, &configv1.ResolveRequest{Address: address.String()})
	if err != nil {
		return name, false, fmt.Errorf("configstream: address %s: %w: %w", address, ErrUnavailable, err)
	}
	if answer.GetService() == "" {
		return name, false, nil
	}
	if name, err = topology.ParseServiceName(answer.GetService()); err != nil {
		return name, false, fmt.Errorf("configstream: address %s: control says: %w", address, err)
	}
	return name, true, nil
}
