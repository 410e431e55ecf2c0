package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
)

// errDied ends a wait for a process that will never be ready.
var errDied = errors.New("it has ended")

// poll calls try until it succeeds. It gives up when the playground's patience or ctx ends, or when try says errDied; the
// error is the last one of try.
func (p *Playground) poll(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.opts.Patience)
	defer cancel()
	started := time.Now()
	var last error
	for {
		attempt, done := context.WithTimeout(ctx, 2*time.Second)
		err := try(attempt)
		done()
		if err == nil || errors.Is(err, errDied) {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err // the errors of a cut-off attempt say nothing about why
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return context.Cause(ctx)
			}
			return fmt.Errorf("not within %s: %w: %w", time.Since(started).Round(time.Second), context.DeadlineExceeded, last)
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// complain adds to an error what the program said last.
func (p *Playground) complain(u unit, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%s is not ready: %w\nthe end of %s:\n%s", u.id(), err, p.shorten(p.logFile(u)), indent(tail(p.logFile(u), 12)))
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }

// waitSocket waits until a control answers on its admin socket.
func (p *Playground) waitSocket(ctx context.Context, u unit) error {
	client := admin.NewClient(p.SocketOf(u.cluster))
	return p.complain(u, p.poll(ctx, func(ctx context.Context) error {
		if !p.alive(u) {
			return errDied
		}
		_, err := client.Introduction(ctx)
		return err
	}))
}

func (p *Playground) readyURL(u unit) string {
	purpose := "admin"
	if u.program == App {
		purpose = "http"
	}
	return "http://" + p.state.address(u, purpose) + "/readyz"
}

// waitReady waits until a program says that it is ready.
func (p *Playground) waitReady(ctx context.Context, u unit) error {
	url := p.readyURL(u)
	return p.complain(u, p.poll(ctx, func(ctx context.Context) error {
		if !p.alive(u) {
			return errDied
		}
		return ready(ctx, url)
	}))
}

func (p *Playground) alive(u unit) bool {
	p.mu.Lock()
	r := p.state.Running[u.id()]
	p.mu.Unlock()
	return r.alive()
}

// plainHTTP keeps no connection: the next answer must come from whoever listens then.
var plainHTTP = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// ready asks a readiness address once. Its error says what is missing.
func ready(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := plainHTTP.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s says %s", url, strings.Join(strings.Fields(string(said)), " "))
	}
	return nil
}

// settle waits until every control that runs has fresh word of every peer it was told of, and until each running gateway
// of it has a link to that peer, and until each control has finished reading its manifests.
func (p *Playground) settle(ctx context.Context) error {
	return p.poll(ctx, func(ctx context.Context) error {
		for _, c := range p.state.Spec.Clusters {
			control := unit{cluster: c.Name, name: "control"}
			if !p.alive(control) {
				continue
			}
			st, err := admin.NewClient(p.SocketOf(c.Name)).Status(ctx)
			if err != nil {
				return err
			}
			if err := p.settled(c, st); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *Playground) settled(c Cluster, st admin.Status) error {
	for _, peer := range st.Peers {
		if !p.alive(unit{cluster: peer.Cluster, name: "control"}) {
			continue
		}
		if peer.State != "Fresh" {
			return fmt.Errorf("%s: peer %s is %s %s", c.Name, peer.Cluster, peer.State, peer.Reason)
		}
		for _, u := range c.units() {
			if u.program != Gateway || !p.alive(u) {
				continue
			}
			if !linkUp(st.Links, u.name, peer.Cluster) {
				return fmt.Errorf("%s: no link to %s yet", u.id(), peer.Cluster)
			}
		}
	}
	return nil
}

func linkUp(links []admin.Link, gateway, cluster string) bool {
	for _, l := range links {
		if l.Gateway == gateway && l.Cluster == cluster && l.State == "up" {
			return true
		}
	}
	return false
}
