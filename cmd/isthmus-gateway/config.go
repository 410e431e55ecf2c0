package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/gateway"
	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/upstream"
)

// config is the file; help documents it.
type config struct {
	ID              string             `json:"id"`
	Control         strictyaml.Address `json:"control"`
	TrustDomain     string             `json:"trustDomain"`
	State           string             `json:"state"`
	JoinTokenFile   string             `json:"joinTokenFile"`
	TrustBundleFile string             `json:"trustBundleFile"`
	Identity        struct {
		WorkloadAPI string `json:"workloadAPI"`
	} `json:"identity"`
	Listen struct {
		Streams strictyaml.Address `json:"streams"`
		QUIC    strictyaml.Address `json:"quic"`
		TCP     strictyaml.Address `json:"tcp"` // or "off"
		Admin   strictyaml.Address `json:"admin"`
	} `json:"listen"`
	Advertise struct {
		Streams strictyaml.Address `json:"streams"`
		QUIC    strictyaml.Address `json:"quic"`
		TCP     strictyaml.Address `json:"tcp"`
	} `json:"advertise"`
	ConnectionsPerPeer int    `json:"connectionsPerPeer"`
	ProbeInterval      string `json:"probeInterval"`
	DeadAfter          string `json:"deadAfter"`
	DrainGrace         string `json:"drainGrace"`
	Log                struct {
		Level  string `json:"level"`
		Format string `json:"format"`
	} `json:"log"`

	domain                               spiffeid.TrustDomain
	probeInterval, deadAfter, drainGrace time.Duration
}

const (
	maxConnectionsPerPeer = 32
	minProbeInterval      = 10 * time.Millisecond
)

func readConfig(file string) (*config, error) {
	c := new(config)
	d, err := strictyaml.ReadConfig(file, c)
	if err != nil {
		return nil, err
	}
	if err := c.check(d); err != nil {
		return nil, err
	}
	return c, nil
}

// check refuses what can't work, with its line.
func (c *config) check(d *strictyaml.Document) error {
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, d.Errorf(field, format, args...))
	}
	for _, f := range []struct{ field, value string }{
		{"id", c.ID},
		{"control", string(c.Control)},
		{"trustDomain", c.TrustDomain},
		{"state", c.State},
		{"listen.streams", string(c.Listen.Streams)},
		{"listen.quic", string(c.Listen.QUIC)},
	} {
		if f.value == "" {
			wrong(f.field, "is missing")
		}
	}
	for _, f := range []struct {
		field   string
		address strictyaml.Address
	}{
		{"control", c.Control},
		{"listen.streams", c.Listen.Streams},
		{"listen.quic", c.Listen.QUIC},
		{"listen.admin", c.Listen.Admin},
		{"advertise.streams", c.Advertise.Streams},
		{"advertise.quic", c.Advertise.QUIC},
		{"listen.tcp", c.wantedTCP()},
		{"advertise.tcp", c.Advertise.TCP},
	} {
		if err := f.address.Check(); err != nil {
			wrong(f.field, "%v", err)
		}
	}
	if _, err := telemetry.ParseLevel(c.Log.Level); err != nil {
		wrong("log.level", "%v", err)
	}
	if err := telemetry.CheckFormat(c.Log.Format); err != nil {
		wrong("log.format", "%v", err)
	}
	if w := c.Identity.WorkloadAPI; w != "" {
		if err := upstream.CheckAddress(w); err != nil {
			wrong("identity.workloadAPI", "%v", err)
		}
	}
	if c.TrustDomain != "" {
		var err error
		if c.domain, err = spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
			wrong("trustDomain", "%v", err)
		} else if _, err := trust.GatewayID(c.domain, c.ID); err != nil && c.ID != "" {
			wrong("id", "%v", err)
		}
	}
	if c.ConnectionsPerPeer < 0 || c.ConnectionsPerPeer > maxConnectionsPerPeer {
		wrong("connectionsPerPeer", "want 1 to %d, or nothing for the default", maxConnectionsPerPeer)
	}
	for _, f := range []struct {
		field, value string
		into         *time.Duration
	}{
		{"probeInterval", c.ProbeInterval, &c.probeInterval}, {"deadAfter", c.DeadAfter, &c.deadAfter}, {"drainGrace", c.DrainGrace, &c.drainGrace},
	} {
		if f.value == "" {
			continue
		}
		v, err := time.ParseDuration(f.value)
		if err != nil || v <= 0 {
			wrong(f.field, "want a duration like 500ms or 10s")
		}
		*f.into = v
	}
	if c.probeInterval != 0 && (c.probeInterval < minProbeInterval || c.probeInterval > gateway.MaxProbeInterval) {
		wrong("probeInterval", "want %s to %s", minProbeInterval, gateway.MaxProbeInterval)
	}
	return errors.Join(errs...)
}

// advertised returns the address to tell others: what the configuration says, with the port that was bound where it says 0, or
// the bound address when that is one that others can use.
func advertised(field string, configured strictyaml.Address, bound net.Addr) (string, error) {
	boundHost, boundPort, err := net.SplitHostPort(bound.String())
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	host, port := boundHost, boundPort
	if configured != "" {
		if host, port, err = net.SplitHostPort(string(configured)); err != nil {
			return "", fmt.Errorf("%s: %w", field, err)
		}
		if port == "0" {
			port = boundPort
		}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return "", fmt.Errorf("%s: %q is no address that others can reach: set it", field, net.JoinHostPort(host, port))
	}
	return net.JoinHostPort(host, port), nil
}
