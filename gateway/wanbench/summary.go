package main

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// summary is what a page says of figures, as Markdown.
func summary(all []figure, o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Of %d processors, Linux %s; TCP's congestion control is %s. Each cell is one measurement of %s.\n",
		runtime.NumCPU(), kernel("/proc/sys/kernel/osrelease"), strings.ToUpper(cmp.Or(o.congestion, kernel("/proc/sys/net/ipv4/tcp_congestion_control"))), o.each)
	var ways []string
	for _, f := range all {
		if !slices.Contains(ways, f.Way) {
			ways = append(ways, f.Way)
		}
	}
	for _, load := range []struct{ name, title string }{
		{loadKept, fmt.Sprintf("Requests on %d kept connections: a second; p50 / p99 / p99.9 in ms", keptConnections)},
		{loadNew, fmt.Sprintf("A new connection for each request, %d at a time: a second; p50 / p99 / p99.9 in ms", newAtATime)},
		{loadBulk, "One download: MB/s"},
	} {
		of := slices.DeleteFunc(slices.Clone(all), func(f figure) bool { return f.Load != load.name })
		if len(of) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n### %s\n\n", load.title)
		table(&b, of, ways)
	}
	fmt.Fprintf(&b, "\n### What it costs\n\nProcessor time, the median over all links; memory, the most. \"Own\" is without the pages of the program's file, which processes share.\n\n")
	costs(&b, all, ways)
	return b.String()
}

// table is a row for each WAN and a column for each way.
func table(b *strings.Builder, of []figure, ways []string) {
	fmt.Fprintf(b, "| RTT | loss | %s | carried by |\n|---|---|%s---|\n", strings.Join(ways, " | "), strings.Repeat("---|", len(ways)))
	type network struct {
		rtt  time.Duration
		loss float64
	}
	var seen []network
	for _, f := range of {
		n := network{f.RTT, f.Loss}
		if slices.Contains(seen, n) {
			continue
		}
		seen = append(seen, n)
		fmt.Fprintf(b, "| %s | %g %% |", f.RTT, f.Loss*100)
		by := ""
		for _, w := range ways {
			i := slices.IndexFunc(of, func(f figure) bool { return f.Way == w && f.RTT == n.rtt && f.Loss == n.loss })
			if i < 0 {
				b.WriteString(" |")
				continue
			}
			fmt.Fprintf(b, " %s |", of[i].cell())
			if w == "isthmus" {
				by = of[i].By
			}
		}
		fmt.Fprintf(b, " %s |\n", by)
	}
}

func (f figure) cell() string {
	failed := ""
	if f.Failed > 0 {
		failed = fmt.Sprintf(" (%d failed)", f.Failed)
	}
	if f.Load == loadBulk {
		return fmt.Sprintf("%.1f", f.Rate/1e6) + failed
	}
	return fmt.Sprintf("%.0f; %.0f / %.0f / %.0f", f.Rate, ms(f.P50), ms(f.P99), ms(f.P999)) + failed
}

func costs(b *strings.Builder, all []figure, ways []string) {
	b.WriteString("| | CPU µs a request, kept | CPU µs a request, new | CPU s a GB | MB | own MB |\n|---|---|---|---|---|---|\n")
	for _, w := range ways {
		cost := func(load string) string {
			var of []float64
			for _, f := range all {
				if f.Load == load && f.Way == w && f.CPU > 0 {
					of = append(of, f.CPU)
				}
			}
			if len(of) == 0 {
				return "–"
			}
			slices.Sort(of)
			if load == loadBulk {
				return fmt.Sprintf("%.1f", of[len(of)/2])
			}
			return fmt.Sprintf("%.0f", of[len(of)/2]/1e3)
		}
		of := slices.DeleteFunc(slices.Clone(all), func(f figure) bool { return f.Way != w })
		most := slices.MaxFunc(of, func(a, b figure) int { return cmp.Compare(a.Memory, b.Memory) })
		if most.Memory == 0 {
			fmt.Fprintf(b, "| %s | – | – | – | – | – |\n", w)
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %.0f | %.0f |\n", w, cost(loadKept), cost(loadNew), cost(loadBulk), float64(most.Memory)/1e6, float64(most.Own)/1e6)
	}
}

func kernel(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// The marks in a page between which the figures are.
const (
	beginFigures = "<!-- bench-gateway:begin -->\n"
	endFigures   = "<!-- bench-gateway:end -->\n"
)

// putInto puts text between the marks of a page, which is made if there is none.
func putInto(page, text string) error {
	b, err := os.ReadFile(page)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	whole, ok := between(string(b), text)
	if !ok {
		if len(b) > 0 {
			return fmt.Errorf("%s has no place for figures: it wants the lines %q and %q", page, strings.TrimSpace(beginFigures), strings.TrimSpace(endFigures))
		}
		whole = text
	}
	return os.WriteFile(page, []byte(whole), 0o644)
}

func between(page, text string) (string, bool) {
	before, rest, ok1 := strings.Cut(page, beginFigures)
	_, after, ok2 := strings.Cut(rest, endFigures)
	return before + beginFigures + "\n" + text + "\n" + endFigures + after, ok1 && ok2
}
