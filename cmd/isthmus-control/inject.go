package main

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/control/inject"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
)

// injector returns the webhook that puts sidecars into Pods; nil where the configuration names none.
func injector(c *config, l net.Listener, log *slog.Logger) (*control.Webhook, error) {
	if c.Kubernetes == nil || c.Kubernetes.Injection == nil {
		return nil, nil
	}
	i := c.Kubernetes.Injection
	data, err := atomicfile.Read(i.Settings, inject.MaxSettings)
	if err != nil {
		return nil, &usageError{fmt.Errorf("kubernetes.injection.settings: %w", err)}
	}
	settings, err := inject.ParseSettings(i.Settings, data)
	if err != nil {
		return nil, &usageError{err}
	}
	if settings.TrustDomain != c.TrustDomain {
		return nil, &usageError{fmt.Errorf("%s: trustDomain is %s, control's is %s: sidecars would not let it in", i.Settings, settings.TrustDomain, c.TrustDomain)}
	}
	return &control.Webhook{Listener: l, Names: i.Names, Handler: inject.Handler(settings, func() string { return string(c.roots()) }, log)}, nil
}

// roots returns the trust domain's roots (PEM), as control keeps them for others; nothing when it has not yet.
func (c *config) roots() []byte {
	pem, err := atomicfile.Read(filepath.Join(c.State, control.TrustBundleFile), inject.MaxBundle)
	if err != nil {
		return nil // there is none before control has begun
	}
	return pem
}
