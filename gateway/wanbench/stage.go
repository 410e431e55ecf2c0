package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/netns"
	"github.com/isthmus-mesh/isthmus/internal/wan"
)

// way is one way from the client to the server.
type way struct {
	name      string
	pids      []int // of what carries it, beside the kernel
	path      path
	mayUseUDP bool
}

// stage is two clusters with a WAN between, the ways across, and a server at the end of each.
type stage struct {
	options

	dir      string
	pg       *lab.Playground
	status   lab.Status
	children []*exec.Cmd
	ways     []way
}

// Where the others listen; the playground's own ports begin at 10001.
const (
	portServer  = 20000
	portHaproxy = 20001
	portH2      = 20003
)

func newStage(ctx context.Context, o options) (s *stage, err error) {
	s = &stage{options: o}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "isthmus-wanbench-"); err != nil {
		return s, err
	}
	spec, err := lab.Sample(2)
	if err != nil {
		return s, err
	}
	s.pg, _, err = lab.Up(ctx, filepath.Join(s.dir, "mesh"), spec, lab.Options{
		Binaries: lab.BinariesIn(o.binaries), Runtime: lab.Netns, DieWithParent: true, Patience: time.Minute,
	})
	if err != nil {
		return s, err
	}
	if s.status, err = s.pg.Status(ctx); err != nil {
		return s, err
	}
	if err = s.congest(ctx); err != nil {
		return s, err
	}
	// The workload's sidecar makes room for the server: to the gateways it is one, and what they carry are bytes.
	if _, err = s.pg.Stop(ctx, time.Second, "us/checkout"); err != nil {
		return s, err
	}
	for _, at := range []string{s.at("us", "checkout-0-sidecar", "inbound"), s.on("us", "checkout-0-sidecar", portServer)} {
		if _, err = s.child("us", "checkout-0-sidecar", "server", at); err != nil {
			return s, err
		}
	}
	if err = makeCertificates(s.dir); err != nil {
		return s, err
	}
	for _, name := range o.ways {
		var w way
		switch name {
		case "direct":
			w = s.direct()
		case "haproxy":
			w, err = s.haproxy()
		case "h2":
			w, err = s.h2()
		case "isthmus":
			w = s.isthmus()
		default:
			err = fmt.Errorf("-ways: %q is not known", name)
		}
		if errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintf(os.Stderr, "wanbench: %s is left out: %v\n", name, err)
			err = nil
			continue
		}
		if err != nil {
			return s, err
		}
		w.name = name
		s.ways = append(s.ways, w)
	}
	return s, s.answering(ctx)
}

// congest sets TCP's congestion control for the connections that are made from now on.
func (s *stage) congest(ctx context.Context) error {
	if s.congestion == "" {
		return nil
	}
	for _, cluster := range s.status.Clusters {
		for _, p := range cluster.Processes {
			path, args, err := netns.Command(s.pg.NamespaceOf(cluster.Name, p.Name), "sysctl", []string{"-q", "-w", "net.ipv4.tcp_congestion_control=" + s.congestion})
			if err != nil {
				return err
			}
			if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
				return fmt.Errorf("-congestion %s: %w: %s", s.congestion, err, out)
			}
		}
	}
	return nil
}

// answering waits until every way leads to the server.
func (s *stage) answering(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, w := range s.ways {
		for {
			r, err := s.load(ctx, w, loadOnce, 0)
			if err == nil && r.Failed == 0 {
				break
			}
			if err == nil {
				err = errors.New(r.Why)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s leads nowhere: %w", w.name, err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

func (s *stage) close() {
	for _, c := range s.children {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	if s.pg != nil {
		_ = s.pg.Down(context.Background(), time.Second, false)
		s.pg.Close()
	}
	_ = os.RemoveAll(s.dir)
}

func (s *stage) process(cluster, name string) lab.ProcessStatus {
	for _, c := range s.status.Clusters {
		i := slices.IndexFunc(c.Processes, func(p lab.ProcessStatus) bool { return c.Name == cluster && p.Name == name })
		if i >= 0 {
			return c.Processes[i]
		}
	}
	return lab.ProcessStatus{}
}

// at is where a process listens; on is a port of its host.
func (s *stage) at(cluster, name, purpose string) string {
	return s.on(cluster, name, s.process(cluster, name).Ports[purpose])
}

func (s *stage) on(cluster, name string, port int) string {
	return net.JoinHostPort(s.process(cluster, name).Host, strconv.Itoa(port))
}

// child runs a part of this program in the namespace of a process.
func (s *stage) child(cluster, name string, args ...string) (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	return s.start(cluster, name, self, args...)
}

func (s *stage) start(cluster, name, program string, args ...string) (pid int, err error) {
	path, args, err := netns.Command(s.pg.NamespaceOf(cluster, name), program, args)
	if err != nil {
		return 0, err
	}
	c := exec.Command(path, args...)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Start(); err != nil {
		return 0, err
	}
	s.children = append(s.children, c)
	return c.Process.Pid, nil
}

// load runs a load on the client's host.
func (s *stage) load(ctx context.Context, w way, kind string, lasts time.Duration) (sample, error) {
	spec, err := json.Marshal(w.path)
	if err != nil {
		return sample{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	path, args, err := netns.Command(s.pg.NamespaceOf("eu", "web-sidecar"), self, []string{"load", kind, lasts.String(), string(spec)})
	if err != nil {
		return sample{}, err
	}
	c := exec.CommandContext(ctx, path, args...)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return sample{}, err
	}
	var r sample
	return r, json.Unmarshal(out, &r)
}

func (s *stage) direct() way {
	return way{path: path{Addresses: []string{s.on("us", "checkout-0-sidecar", portServer)}}}
}

// shape makes the WAN what a measurement wants.
func (s *stage) shape(ctx context.Context, rtt time.Duration, loss float64) error {
	for _, link := range []wan.Link{{Down: true}, {Delay: rtt / 2, Loss: loss}} {
		if _, err := s.pg.SetDirections(ctx, []lab.Direction{{From: "eu", To: "us", Link: link.String()}, {From: "us", To: "eu", Link: link.String()}}); err != nil {
			return err
		}
		if link.Down {
			time.Sleep(cutFor)
		}
	}
	return s.answering(ctx)
}

// cutFor is how long the WAN is cut before it becomes another: long enough for every kept connection across it to be given up. A connection that has
// known a WAN of 0.3 ms takes 20 ms for a queue, and keeps its window small for as long as it lives: of what follows, nothing would be measured.
const cutFor = 1500 * time.Millisecond

// cpu is how much processor time processes have used.
func cpu(pids []int) (sum time.Duration) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere that matters
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) < 13 {
			continue
		}
		user, _ := strconv.ParseInt(fields[11], 10, 64)   // utime
		system, _ := strconv.ParseInt(fields[12], 10, 64) // stime
		sum += time.Duration(user+system) * tick
	}
	return sum
}

// memory is how much of the machine's memory processes hold, in bytes: all of it, and what is of no file.
func memory(pids []int) (resident, own int64) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			switch f[0] {
			case "VmRSS:":
				resident += kb << 10
			case "RssAnon:":
				own += kb << 10
			}
		}
	}
	return resident, own
}

// datagrams is how many UDP packets have come to and gone from the hosts of processes.
func datagrams(pids []int) (sum int64) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 4 && f[0] == "Udp:" && f[1] != "InDatagrams" {
				in, _ := strconv.ParseInt(f[1], 10, 64)
				out, _ := strconv.ParseInt(f[4], 10, 64)
				sum += in + out
			}
		}
	}
	return sum / 2 // each way has two ends
}

// datagramsAtRest is how many a second there are when nobody asks for anything.
func (s *stage) datagramsAtRest() float64 {
	var pids []int
	for _, w := range s.ways {
		if w.mayUseUDP {
			pids = append(pids, w.pids...)
		}
	}
	if len(pids) == 0 {
		return 0
	}
	const look = 300 * time.Millisecond
	before := datagrams(pids)
	time.Sleep(look)
	return float64(datagrams(pids)-before) / look.Seconds()
}
