package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/rehearsal"
	"github.com/isthmus-mesh/isthmus/internal/lab/traffic"
)

// startLoad makes traffic where the drill is to, and returns what ends it. In a playground it is to unless there is enough already; elsewhere only
// where it was said.
func (f *failover) startLoad(ctx context.Context, facts *rehearsal.Facts) (stop func(), err error) {
	stop = func() {}
	in, err := f.scope()
	if err != nil {
		return stop, err
	}
	if f.load == 0 || !in.isPlayground && !f.loadSaid {
		return stop, nil
	}
	load := traffic.Load{URL: f.loadURL, Proxy: f.proxy, Rate: f.load, Workers: 8}
	from := "here"
	if load.URL == "" {
		load.URL = "http://" + f.service.Name() + "." + f.service.Namespace() + ".svc.clusterset.local/"
	}
	if load.Proxy == "" && in.isPlayground {
		if from, load.Proxy, load.Dial, err = f.playgroundCaller(); err != nil {
			return stop, err
		}
	}
	if load.Proxy == "" {
		if u, e := url.Parse(os.Getenv("http_proxy")); e == nil {
			load.Proxy = u.Host
		}
	}
	if !f.loadSaid {
		f.look(ctx, drillLook)
		enough := func(seconds int) bool {
			rate := f.recorder.Rate(f.cluster, seconds, time.Now())
			return rate >= f.floor && rate > 0
		}
		// It may be what the last drill sent: that has ended, and does not come any more.
		if enough(5) && f.watch(ctx, drillLag+time.Second, nil) && enough(1) {
			return stop, nil
		}
	}
	f.chat.say("%s calls %s, %g times a second", from, load.URL, load.Rate)
	facts.Load = &rehearsal.Load{From: from, URL: load.URL, Rate: load.Rate}
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	counted := time.Now().Add(warmUp)
	running.Go(func() {
		_ = load.Run(sending, func(a traffic.Answer) { // the URL was read above
			if a.Sent.Before(counted) && a.Failed() {
				return // what fails now tells of what was there before
			}
			answer := rehearsal.Answer{Ended: a.Sent.Add(a.Took), Took: a.Took, Cluster: a.Cluster}
			if a.Failed() {
				answer.Cluster, answer.Problem = "", a.Reason()
			}
			f.recorder.Answered(answer)
		})
	})
	f.watch(ctx, warmUp, nil)
	return func() { cancel(); running.Wait() }, nil
}

// playgroundCaller returns the workload of a playground that calls: the first that is no copy of the service.
func (f *failover) playgroundCaller() (name, proxy string, dial func(ctx context.Context, network, address string) (net.Conn, error), err error) {
	p, err := f.open()
	if err != nil {
		return "", "", nil, err
	}
	defer p.Close()
	for _, c := range p.Spec().Clusters {
		for _, w := range c.Workloads {
			if w.App == f.service.Name() && w.Namespace == f.service.Namespace() {
				continue
			}
			name = c.Name + "/" + w.Name
			proxy, err = p.ProxyOf(name)
			return name, proxy, p.DialerOf(name), err
		}
	}
	return "", "", nil, fmt.Errorf("no workload of the playground calls: give --load 0, or --load-proxy")
}
