package kubeaccess

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// ErrUnreachable is what the error is (errors.Is) when the API server did not answer.
var ErrUnreachable = errors.New("unreachable")

// Explain returns err with the context it is of, and what to do where that is known. What a caller decides by is kept: the errors of
// apimachinery, context.DeadlineExceeded and ErrUnreachable.
func (c *Cluster) Explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	var (
		dial *url.Error
		netw net.Error
	)
	who := fmt.Sprintf("context %q: %s", c.Context, doing)
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", who, err)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netw) && netw.Timeout():
		return fmt.Errorf("%s: the API server at %s, or what it asks, did not answer in time: %w: %w", who, c.Config.Host, context.DeadlineExceeded, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: the API server does not know who asks; log in to that cluster again: %w", who, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: your user may not: %w", who, err)
	case errors.As(err, &dial):
		return fmt.Errorf("%s: the API server at %s: %w: %w", who, c.Config.Host, ErrUnreachable, dial.Err)
	default:
		return fmt.Errorf("%s: %w", who, err)
	}
}
