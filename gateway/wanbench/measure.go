package main

import (
	"context"
	"fmt"
	"io"
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
	CPU    float64       `json:"cpu_ns"` // of what carries it: for a request; of bulk, for a byte
	Memory int64         `json:"memory_bytes"`
	Failed int           `json:"failed"`
}

func (s *stage) measure(ctx context.Context, out io.Writer) (all []figure, err error) {
	for _, load := range s.loads {
		_, _ = fmt.Fprintf(out, "\n%s\n%8s %6s  %-8s %12s %10s %10s %10s %12s %9s %7s\n", load, "RTT", "loss", "way", rateUnit(load), "p50 ms", "p99 ms", "p99.9 ms", cpuUnit(load), "RSS MB", "failed")
		for _, rtt := range s.rtts {
			for _, loss := range s.losses {
				if err = s.shape(ctx, rtt, loss); err != nil {
					return all, err
				}
				for _, w := range s.ways {
					if _, err = s.load(ctx, w, load, warmUp); err != nil {
						return all, err
					}
					before := cpu(w.pids)
					r, err := s.load(ctx, w, load, s.each)
					if err != nil {
						return all, err
					}
					f := figure{
						Load: load, Way: w.name, RTT: rtt, Loss: loss, Rate: float64(r.Done) / s.each.Seconds(), Failed: r.Failed, Memory: memory(w.pids),
						P50: r.P50, P99: r.P99, P999: r.P999,
					}
					if r.Done > 0 {
						f.CPU = float64(cpu(w.pids)-before) / float64(r.Done)
					}
					all = append(all, f)
					f.print(out)
				}
			}
		}
	}
	return all, nil
}

func rateUnit(load string) string {
	if load == loadBulk {
		return "MB/s"
	}
	return "requests/s"
}

func cpuUnit(load string) string {
	if load == loadBulk {
		return "CPU s/GB"
	}
	return "CPU µs/req"
}

func (f figure) print(out io.Writer) {
	rate, used := f.Rate, f.CPU/1e3
	if f.Load == loadBulk {
		rate, used = f.Rate/1e6, f.CPU // ns a byte are s a GB
	}
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	_, _ = fmt.Fprintf(out, "%8s %5.1f%%  %-8s %12.1f %10.2f %10.2f %10.2f %12.2f %9.1f %7d\n",
		f.RTT, f.Loss*100, f.Way, rate, ms(f.P50), ms(f.P99), ms(f.P999), used, float64(f.Memory)/1e6, f.Failed)
}
