package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

// warmUp is for connections to be made, and windows to grow.
const warmUp = 500 * time.Millisecond

// figure is what one load made of one way, on one WAN.
type figure struct {
	Load   string        `json:"load"` // kept, new or bulk
	Way    string        `json:"way"`
	RTT    time.Duration `json:"rtt_ns"`
	Loss   float64       `json:"loss"`
	Rate   float64       `json:"rate"` // requests a second; of bulk, bytes
	P50    time.Duration `json:"p50_ns,omitempty"`
	P99    time.Duration `json:"p99_ns,omitempty"`
	P999   time.Duration `json:"p999_ns,omitempty"`
	CPU    float64       `json:"cpu_ns"`           // of what carries it: for a request; of bulk, for a byte
	Memory int64         `json:"memory_bytes"`     // resident, with the pages of the program, which processes share
	Own    int64         `json:"own_memory_bytes"` // without
	Failed int           `json:"failed"`
	By     string        `json:"by"` // what carried it across the WAN
}

// passes are the loads that are measured before the WAN becomes another one. Bulk has its own: what a service has moved lately says how its streams
// are carried, so calls are measured before anything of the kind.
var passes = [][]string{{loadKept, loadNew}, {loadBulk}}

func (s *stage) measure(ctx context.Context, out io.Writer) (all []figure, err error) {
	for _, pass := range passes {
		pass = slices.DeleteFunc(slices.Clone(pass), func(load string) bool { return !slices.Contains(s.loads, load) })
		if len(pass) == 0 {
			continue
		}
		_, _ = fmt.Fprintf(out, "\n%-5s %8s %6s  %-8s %12s %10s %10s %10s %13s %7s %7s %7s  %s\n",
			"load", "RTT", "loss", "way", "rate", "p50 ms", "p99 ms", "p99.9 ms", "CPU", "RSS MB", "own MB", "failed", "by")
		for _, rtt := range s.rtts {
			for _, loss := range s.losses {
				if err = s.shape(ctx, rtt, loss); err != nil {
					return all, err
				}
				quiet := s.datagramsAtRest()
				for _, load := range pass {
					for _, w := range s.ways {
						f, err := s.one(ctx, w, load, quiet)
						if err != nil {
							return all, err
						}
						f.RTT, f.Loss = rtt, loss
						all = append(all, f)
						f.print(out)
					}
				}
			}
		}
	}
	return all, nil
}

// one measures one load on one way.
func (s *stage) one(ctx context.Context, w way, load string, quiet float64) (figure, error) {
	if !s.cold {
		if _, err := s.load(ctx, w, load, warmUp); err != nil {
			return figure{}, err
		}
	}
	used, sent, began := cpu(w.pids), datagrams(w.pids), time.Now()
	r, err := s.load(ctx, w, load, s.each)
	if err != nil {
		return figure{}, err
	}
	f := figure{
		Load: load, Way: w.name, Rate: float64(r.Done) / s.each.Seconds(), Failed: r.Failed,
		P50: r.P50, P99: r.P99, P999: r.P999, By: "TCP",
	}
	f.Memory, f.Own = memory(w.pids)
	if r.Done > 0 {
		f.CPU = float64(cpu(w.pids)-used) / float64(r.Done)
	}
	if w.mayUseUDP {
		f.By = carriedBy(load, float64(datagrams(w.pids)-sent)-quiet*time.Since(began).Seconds(), r.Done)
	}
	return f, nil
}

// carriedBy tells from the datagrams that came and went what carried a load. A request takes two and more; of bulk, the kernel counts up to
// forty-five packets of 1,452 bytes as one.
func carriedBy(load string, datagrams float64, done int64) string {
	expected := 2 * float64(done)
	if load == loadBulk {
		expected = float64(done) / (45 * 1452)
	}
	switch {
	case expected == 0:
		return "nothing"
	case datagrams > 0.8*expected:
		return "QUIC"
	case datagrams < 0.5*expected && load == loadBulk, datagrams < 0.2*expected:
		return "TCP"
	default:
		return "both"
	}
}

func (f figure) print(out io.Writer) {
	rate, cpu := fmt.Sprintf("%.1f/s", f.Rate), fmt.Sprintf("%.0f µs", f.CPU/1e3)
	if f.Load == loadBulk {
		rate, cpu = fmt.Sprintf("%.1f MB/s", f.Rate/1e6), fmt.Sprintf("%.2f s/GB", f.CPU) // ns a byte
	}
	_, _ = fmt.Fprintf(out, "%-5s %8s %5.1f%%  %-8s %12s %10.2f %10.2f %10.2f %13s %7.1f %7.1f %7d  %s\n",
		f.Load, f.RTT, f.Loss*100, f.Way, rate, ms(f.P50), ms(f.P99), ms(f.P999), cpu, float64(f.Memory)/1e6, float64(f.Own)/1e6, f.Failed, f.By)
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }
