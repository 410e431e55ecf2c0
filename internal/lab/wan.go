package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/netns"
	"github.com/isthmus-mesh/isthmus/internal/wan"
)

// ErrNoWAN says that a playground has none: its programs share the machine's loopback.
var ErrNoWAN = errors.New("this playground has no WAN: it was not started with --runtime netns")

// Direction is what lies between two clusters, one way.
type Direction struct {
	From  string    `json:"from"`
	To    string    `json:"to"`
	Link  string    `json:"link"` // as wan.ParseLink reads it
	Stats wan.Stats `json:"stats"`
}

// ParseDirections reads "eu-us=80ms,1%", or "eu>us=…" for one way: who is meant must be among clusters.
func ParseDirections(s string, clusters []string) ([]Direction, error) {
	pair, words, ok := strings.Cut(s, "=")
	if !ok {
		return nil, fmt.Errorf("%q: want CLUSTER-CLUSTER=LINK, such as eu-us=80ms,1%%", s)
	}
	link, err := wan.ParseLink(words)
	if err != nil {
		return nil, err
	}
	for _, from := range clusters {
		for _, to := range clusters {
			if from == to {
				continue
			}
			there, back := Direction{From: from, To: to, Link: link.String()}, Direction{From: to, To: from, Link: link.String()}
			switch pair {
			case from + "-" + to:
				return []Direction{there, back}, nil
			case from + ">" + to:
				return []Direction{there}, nil
			}
		}
	}
	return nil, fmt.Errorf("%q: want CLUSTER-CLUSTER, or CLUSTER>CLUSTER for one way, of: %s", pair, strings.Join(clusters, ", "))
}

// wanUnit is the process that carries packets between the clusters.
const (
	wanID     = "wan"
	wanSocket = "wan.sock"
	wanLog    = "wan.log"
)

// ensureNetwork makes the namespaces, and starts what carries packets between them, if they are not there.
func (p *Playground) ensureNetwork(ctx context.Context) error {
	n := p.state.Network
	if n == nil {
		return nil
	}
	if !n.Exists() {
		if err := n.Make(ctx); err != nil {
			return fmt.Errorf("playground: %w", err)
		}
		if err := p.capture(ctx); err != nil {
			return err
		}
	} else if p.state.Running[wanID].alive() {
		return nil
	}
	path, err := p.opts.Binaries.path(App)
	if err != nil {
		return err
	}
	if err = os.MkdirAll(p.state.Sockets, 0o700); err != nil {
		return fmt.Errorf("playground: %w", err)
	}
	logFile := filepath.Join(p.dir, wanLog)
	r, err := p.start.run(command{path: path, args: []string{"playground", "wan-router", "--dir", p.dir}, env: append(os.Environ(), p.state.Env...), dir: p.dir, log: logFile})
	if err != nil {
		return fmt.Errorf("playground: WAN: %w", err)
	}
	p.state.Running[wanID] = r
	if err = p.state.save(p.dir); err != nil {
		return errors.Join(err, r.signal(os.Kill))
	}
	err = p.poll(ctx, func(ctx context.Context) error {
		if !r.alive() {
			return errDied
		}
		_, e := p.Directions(ctx)
		return e
	})
	if err != nil {
		return fmt.Errorf("playground: the WAN is not ready: %w\nthe end of %s:\n%s", err, p.shorten(logFile), indent(tail(logFile, 12)))
	}
	return nil
}

// removeNetwork ends the WAN and removes the namespaces.
func (p *Playground) removeNetwork(ctx context.Context) error {
	if p.state.Network == nil {
		return nil
	}
	err := p.state.Running[wanID].stop(ctx, time.Second)
	delete(p.state.Running, wanID)
	return errors.Join(err, p.state.Network.Remove(ctx))
}

// RunWAN carries packets between the clusters of the playground in dir, until ctx ends. It is a process of the playground's own.
func RunWAN(ctx context.Context, dir string) error {
	st, err := loadState(dir)
	if err != nil {
		return err
	}
	if st.Network == nil {
		return ErrNoWAN
	}
	sites, err := openSites(*st.Network)
	defer func() {
		for _, s := range sites {
			_ = s.Device.(io.Closer).Close()
		}
	}()
	if err != nil {
		return err
	}
	const seed = 1
	router, err := wan.New(seed, sites...)
	if err != nil {
		return err
	}
	if err = st.Network.Attach(ctx); err != nil {
		return err
	}
	s := &wanServer{router: router}
	for _, d := range st.Links {
		if err = s.set(d); err != nil {
			return err
		}
	}
	path := filepath.Join(st.Sockets, wanSocket)
	if err = remove(path); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: s.handler(*st.Network), ReadHeaderTimeout: time.Second}
	ended := make(chan error, 2)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ended <- router.Run(ctx) }()
	go func() { ended <- server.Serve(l) }()
	select {
	case <-ctx.Done():
		err = nil
	case err = <-ended:
	}
	cancel()
	_ = server.Close()
	for _, s := range sites {
		_ = s.Device.(io.Closer).Close() // ends the router's reads
	}
	return err
}

// openSites opens the device of each cluster, and of the machine.
func openSites(n netns.Network) (sites []wan.Site, err error) {
	const machine = "" // no cluster is called so
	open := func(name, device, path string, prefix string) {
		if err != nil {
			return
		}
		var s wan.Site
		if s, err = openSite(name, device, path, prefix); err == nil {
			sites = append(sites, s)
		}
	}
	open(machine, n.Name, "", n.Machine().String()+"/32")
	for i, s := range n.Sites {
		open(s.Name, netns.Device, netns.Path(n.Router(s.Name)), n.Prefix(i).String())
	}
	return sites, err
}

// wanServer lets the links be told otherwise, over a socket that only the playground's user can open.
type wanServer struct {
	router *wan.Router
	links  []Direction // in force; owned by whoever serves, one request at a time
}

func (s *wanServer) set(d Direction) error {
	l, err := wan.ParseLink(d.Link)
	if err == nil {
		err = s.router.Set(d.From, d.To, l)
	}
	if err != nil {
		return err
	}
	s.links = append(slices.DeleteFunc(s.links, func(o Direction) bool { return o.From == d.From && o.To == d.To }), d)
	return nil
}

// handler serves GET / → []Direction and PUT / []Direction.
func (s *wanServer) handler(n netns.Network) http.Handler {
	turn := make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		turn <- struct{}{}
		defer func() { <-turn }()
		if r.Method == http.MethodPut {
			var wanted []Direction
			err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxStateBytes)).Decode(&wanted)
			for _, d := range wanted {
				err = errors.Join(err, s.set(d))
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		all := []Direction{}
		for _, from := range n.Sites {
			for _, to := range n.Sites {
				if from.Name == to.Name {
					continue
				}
				d := Direction{From: from.Name, To: to.Name, Link: wan.Link{}.String(), Stats: s.router.Stats(from.Name, to.Name)}
				for _, l := range s.links {
					if l.From == d.From && l.To == d.To {
						d.Link = l.Link
					}
				}
				all = append(all, d)
			}
		}
		_ = json.NewEncoder(w).Encode(all) // the client went away
	})
}

// Eavesdrop listens on every wire between the machines of each cluster, and between the clusters, for a text in the clear.
func (p *Playground) Eavesdrop(ctx context.Context, text string) (*netns.Eavesdropper, error) {
	if p.state.Network == nil {
		return nil, ErrNoWAN
	}
	return p.state.Network.Eavesdrop(ctx, text)
}

// Directions returns what lies between each two clusters, each way.
func (p *Playground) Directions(ctx context.Context) ([]Direction, error) {
	return p.askWAN(ctx, http.MethodGet, nil)
}

// SetDirections makes what lies between clusters what it says, from the next packet on; what it doesn't name stays. It is kept for when the
// playground is started again.
func (p *Playground) SetDirections(ctx context.Context, wanted []Direction) ([]Direction, error) {
	unlock, err := lock(ctx, p.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if p.state, err = loadState(p.dir); err != nil {
		return nil, err
	}
	all, err := p.askWAN(ctx, http.MethodPut, wanted)
	if err != nil {
		return nil, err
	}
	p.state.Links = wantedLinks(p.state.Links, wanted)
	return all, p.state.save(p.dir)
}

func wantedLinks(had, wanted []Direction) []Direction {
	out := slices.Clone(had)
	for _, d := range wanted {
		d.Stats = wan.Stats{}
		out = append(slices.DeleteFunc(out, func(o Direction) bool { return o.From == d.From && o.To == d.To }), d)
	}
	return out
}

func (p *Playground) askWAN(ctx context.Context, method string, wanted []Direction) ([]Direction, error) {
	if p.state.Network == nil {
		return nil, ErrNoWAN
	}
	body, err := json.Marshal(wanted)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(p.state.Sockets, wanSocket))
	}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://wan/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("WAN: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // what could be read is said
		return nil, fmt.Errorf("WAN: %s", strings.TrimSpace(string(said)))
	}
	var all []Direction
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxStateBytes)).Decode(&all); err != nil {
		return nil, fmt.Errorf("WAN: %w", err)
	}
	return all, nil
}
