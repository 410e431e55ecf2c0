package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/upstream"
)

// config is the file; help documents it.
type config struct {
	Workload        string             `json:"workload"`
	Node            string             `json:"node"`
	Control         strictyaml.Address `json:"control"`
	TrustDomain     string             `json:"trustDomain"`
	State           string             `json:"state"`
	JoinTokenFile   string             `json:"joinTokenFile"`
	TrustBundleFile string             `json:"trustBundleFile"`
	Identity        struct {
		WorkloadAPI string `json:"workloadAPI"`
	} `json:"identity"`
	Listen struct {
		Inbound     strictyaml.Address `json:"inbound"`
		Proxy       strictyaml.Address `json:"proxy"`
		Captured    strictyaml.Address `json:"captured"`
		DNS         strictyaml.Address `json:"dns"`
		Admin       strictyaml.Address `json:"admin"`
		WorkloadAPI string             `json:"workloadAPI"`
	} `json:"listen"`
	WorkloadAPI struct {
		UIDs   []uint32 `json:"uids"`
		AnyUID bool     `json:"anyUid"`
	} `json:"workloadAPI"`
	Advertise struct {
		Inbound strictyaml.Address `json:"inbound"`
	} `json:"advertise"`
	CaptureFile string     `json:"captureFile"`
	Listeners   []listener `json:"listeners"`
	JWKS        struct {
		Directory string `json:"directory"`
	} `json:"jwks"`
	DrainGrace string `json:"drainGrace"`
	Log        struct {
		Level    string `json:"level"`
		Format   string `json:"format"`
		Requests string `json:"requests"`
	} `json:"log"`

	domain     spiffeid.TrustDomain
	drainGrace time.Duration
	requests   slog.Level
}

type listener struct {
	Service  string             `json:"service"`
	Port     uint16             `json:"port"`
	Protocol string             `json:"protocol"`
	Scope    string             `json:"scope"`
	Listen   strictyaml.Address `json:"listen"`
	Idle     string             `json:"idle"`

	service topology.ServiceName
	scope   topology.Scope
	idle    time.Duration
}

// What a listener's protocol may say.
const (
	protocolTCP = "tcp"
	protocolUDP = "udp"

	maxIdle = 5 * time.Minute // the called side forgets a flow then
)

func (l *listener) isUDP() bool { return l.Protocol == protocolUDP }

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
		{"control", string(c.Control)}, {"trustDomain", c.TrustDomain}, {"state", c.State},
	} {
		if f.value == "" {
			wrong(f.field, "is missing")
		}
	}
	address := func(field string, a strictyaml.Address) {
		if err := a.Check(); err != nil {
			wrong(field, "%v", err)
		}
	}
	address("control", c.Control)
	address("listen.inbound", c.Listen.Inbound)
	address("listen.proxy", c.Listen.Proxy)
	address("listen.captured", c.Listen.Captured)
	address("listen.dns", c.Listen.DNS)
	address("listen.admin", c.Listen.Admin)
	address("advertise.inbound", c.Advertise.Inbound)
	for i := range c.Listeners {
		c.Listeners[i].check(fmt.Sprintf("listeners[%d]", i), wrong)
	}
	c.checkWho(wrong)
	c.checkWorkloadAPI(wrong)
	c.checkIdentity(wrong)
	if c.DrainGrace != "" {
		v, err := time.ParseDuration(c.DrainGrace)
		if err != nil || v <= 0 {
			wrong("drainGrace", "want a duration like 10s")
		}
		c.drainGrace = v
	}
	c.checkLog(wrong)
	return errors.Join(errs...)
}

func (c *config) checkIdentity(wrong func(field, format string, args ...any)) {
	if c.Identity.WorkloadAPI == "" {
		return
	}
	if err := upstream.CheckAddress(c.Identity.WorkloadAPI); err != nil {
		wrong("identity.workloadAPI", "%v", err)
	}
}

func (c *config) checkWorkloadAPI(wrong func(field, format string, args ...any)) {
	switch w := c.WorkloadAPI; {
	case c.Listen.WorkloadAPI == "" && (w.AnyUID || len(w.UIDs) > 0):
		wrong("workloadAPI", "says who may use listen.workloadAPI, which is missing")
	case c.Listen.WorkloadAPI != "" && c.Node != "":
		wrong("listen.workloadAPI", "a node proxy stands beside no workload whose identity it could hand out")
	case w.AnyUID && len(w.UIDs) > 0:
		wrong("workloadAPI.uids", "of no effect beside anyUid")
	}
}

func (c *config) checkLog(wrong func(field, format string, args ...any)) {
	if _, err := telemetry.ParseLevel(c.Log.Level); err != nil {
		wrong("log.level", "%v", err)
	}
	if err := telemetry.CheckFormat(c.Log.Format); err != nil {
		wrong("log.format", "%v", err)
	}
	c.requests = slog.LevelDebug
	if c.Log.Requests == "" {
		return
	}
	var err error
	if c.requests, err = telemetry.ParseLevel(c.Log.Requests); err != nil {
		wrong("log.requests", "%v", err)
	}
}

func (l *listener) check(field string, wrong func(field, format string, args ...any)) {
	if l.Service == "" || l.Port == 0 || l.Listen == "" {
		wrong(field, "service, port and listen are needed")
	}
	var err error
	if l.service, err = topology.ParseServiceName(l.Service); l.Service != "" && err != nil {
		wrong(field+".service", "%v", err)
	}
	if l.Scope != "" {
		if err = l.scope.UnmarshalText([]byte(l.Scope)); err != nil {
			wrong(field+".scope", "%v", err)
		}
	}
	if err = l.Listen.Check(); err != nil {
		wrong(field+".listen", "%v", err)
	}
	if l.Protocol != "" && l.Protocol != protocolTCP && !l.isUDP() {
		wrong(field+".protocol", "%q: want tcp or udp", l.Protocol)
	}
	if l.Idle == "" {
		return
	}
	l.idle, err = time.ParseDuration(l.Idle)
	if err != nil || l.idle < time.Second || l.idle > maxIdle || !l.isUDP() {
		wrong(field+".idle", "want a duration from 1s to %s, with protocol udp", maxIdle)
	}
}

func (c *config) checkWho(wrong func(field, format string, args ...any)) {
	if (c.Workload == "") == (c.Node == "") {
		wrong("workload", "want either workload or node")
	}
	if namespace, name, ok := strings.Cut(c.Workload, "/"); c.Workload != "" {
		if _, err := topology.NewServiceName(namespace, name); !ok || err != nil { // the same labels
			wrong("workload", "want namespace/name")
		}
	}
	if c.Node != "" && c.Listen.Inbound == "" {
		wrong("listen.inbound", "is missing: a node proxy is there to take calls")
	}
	if c.TrustDomain == "" {
		return
	}
	var err error
	if c.domain, err = spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		wrong("trustDomain", "%v", err)
		return
	}
	if c.Node != "" {
		if _, err := trust.NodeID(c.domain, c.Node); err != nil {
			wrong("node", "%v", err)
		}
	}
}

// loopback puts 127.0.0.1 where an address has no host.
func loopback(a strictyaml.Address) string {
	if strings.HasPrefix(string(a), ":") {
		return "127.0.0.1" + string(a)
	}
	return string(a)
}

// isLocal reports whether nobody outside this machine can reach a.
func isLocal(a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// advertised returns the ip:port of a node proxy's inbound listener to tell control.
func advertised(configured strictyaml.Address, bound net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return "", err
	}
	if configured != "" {
		h, p, splitErr := net.SplitHostPort(string(configured))
		if splitErr != nil {
			return "", splitErr
		}
		host = h
		if p != "0" {
			port = p
		}
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.IsUnspecified() {
		return "", fmt.Errorf("advertise.inbound: %q is no IP address that others can reach: set it", net.JoinHostPort(host, port))
	}
	return net.JoinHostPort(host, port), nil
}
