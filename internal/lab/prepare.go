package lab

import (
	"errors"
	"fmt"
	"os"
)

// prepare makes folders, ports, configuration files and first manifests for the whole playground. What is there already
// stays as it is, the ports too.
func (p *Playground) prepare() error {
	if err := p.preparePorts(); err != nil {
		return err
	}
	if err := os.MkdirAll(p.state.Sockets, 0o700); err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	for _, c := range p.state.Spec.Clusters {
		if err := os.MkdirAll(p.ManifestsOf(c.Name), 0o755); err != nil { //nolint:gosec // G301: manifests are no secret
			return fmt.Errorf("playground: %w", err)
		}
		if err := p.sampleManifests(c); err != nil {
			return err
		}
		for _, u := range c.units() {
			if err := p.prepareUnit(u); err != nil {
				return err
			}
		}
	}
	return p.state.save(p.dir)
}

func (p *Playground) prepareUnit(u unit) error {
	if err := os.MkdirAll(p.stateDir(u), 0o700); err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	config, err := p.config(u)
	if err != nil || config == nil {
		return err
	}
	return writeFile(p.configFile(u), config, 0o600)
}

// preparePorts chooses the ports of a new playground. Those of one that exists are kept: its user's manifests name them, and so
// do the shells that call through it. One that somebody else has taken since is an error.
func (p *Playground) preparePorts() error {
	units := p.state.all()
	var wanted []string
	for _, u := range units {
		for _, purpose := range u.program.ports() {
			wanted = append(wanted, portKey(u, purpose))
		}
	}
	if p.state.Network != nil {
		for i, key := range wanted {
			p.state.Ports[key] = firstFixedPort + i
		}
		return nil
	}
	if len(p.state.Ports) > 0 {
		if busy := p.busyPorts(units); len(busy) > 0 {
			return errors.Join(busy...)
		}
		p.claims = reclaim(p.state.portNumbers())
		return nil
	}
	claims, err := claimBlocks(len(wanted))
	if err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	p.claims = claims
	var free []int
	for _, c := range claims {
		free = append(free, c.ports()...)
	}
	clear(p.state.Ports)
	for i, key := range wanted {
		p.state.Ports[key] = free[i]
	}
	return nil
}

// busyPorts returns an error for each port of a dead program that somebody else has.
func (p *Playground) busyPorts(units []unit) []error {
	var busy []error
	if p.state.Network != nil {
		return nil // nobody else is there
	}
	for _, u := range units {
		if p.alive(u) {
			continue
		}
		for _, purpose := range u.program.ports() {
			if n := p.state.port(u, purpose); !portFree(n) {
				busy = append(busy, fmt.Errorf("%s: its port %d (%s) is taken by another program; end that, or begin anew (isthmus playground down --dir %s removes manifests too)",
					u.id(), n, purpose, p.dir))
			}
		}
	}
	return busy
}

func (st state) portNumbers() []int {
	var out []int
	for _, n := range st.Ports {
		out = append(out, n)
	}
	return out
}

func (p *Playground) releaseClaims() {
	for _, c := range p.claims {
		c.release()
	}
	p.claims = nil
}
