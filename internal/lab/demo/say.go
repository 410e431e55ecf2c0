package demo

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

func (r *run) event(what, cluster string) {
	r.report.Events = append(r.report.Events, Event{At: time.Since(r.start).Milliseconds(), What: what, Cluster: cluster})
}

// say tells a person what happens now.
func (r *run) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.cfg.Out, "%6.2fs  %s\n", time.Since(r.start).Seconds(), fmt.Sprintf(format, args...))
}

func (r *run) progress() string {
	c := r.tally.Counts()
	return fmt.Sprintf("%d requests, %d failed, answered by %s", c.Total, c.Failed, byCluster(c.ByCluster))
}

func byCluster(counts map[string]int) string {
	if len(counts) == 0 {
		return "nobody"
	}
	var parts []string
	for _, c := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", c, counts[c]))
	}
	return strings.Join(parts, ", ")
}

func (r *run) summary() {
	q, f := r.report.Requests, r.report.Failover
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(r.cfg.Out, format+"\n", args...) }
	line("")
	line("requests   %d, failed %d", q.Total, q.Failed)
	line("answered   %s", byCluster(q.ByCluster))
	line("latency    p50 %.1f ms, p99 %.1f ms, slowest %.0f ms", q.P50, q.P99, q.Slowest)
	if f.To != "" {
		line("failover   %s to %s in %d ms", f.From, f.To, f.Moved)
	}
	for _, bad := range q.Failures {
		line("failed     at %.2fs: %s", float64(bad.At)/1000, bad.Reason)
	}
	line("verdict    %s", r.report.Verdict)
	if r.report.Reason != "" {
		line("because    %s", r.report.Reason)
	}
}
