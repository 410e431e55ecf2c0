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
		return ready(ctx, p.state.near(u), url)
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
func ready(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
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
