package main

import (
	"strings"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	all := []figure{
		{Load: loadKept, Way: "haproxy", RTT: 20 * time.Millisecond, Loss: 0.01, Rate: 2000, P50: 21 * time.Millisecond, P99: 250 * time.Millisecond, P999: 300 * time.Millisecond, CPU: 1e5, Memory: 40e6, Own: 20e6, By: "TCP"},
		{Load: loadKept, Way: "isthmus", RTT: 20 * time.Millisecond, Loss: 0.01, Rate: 2400, P50: 22 * time.Millisecond, P99: 48 * time.Millisecond, P999: 60 * time.Millisecond, CPU: 2e5, Memory: 90e6, Own: 30e6, By: "QUIC", Failed: 2},
		{Load: loadBulk, Way: "isthmus", RTT: 20 * time.Millisecond, Rate: 42.5e6, CPU: 9, By: "TCP"},
	}
	got := summary(all, options{each: time.Second})
	for _, want := range []string{
		"| RTT | loss | haproxy | isthmus | carried by |\n|---|---|---|---|---|\n| 20ms | 1 % | 2000; 21 / 250 / 300 | 2400; 22 / 48 / 60 (2 failed) | QUIC |\n",
		"| 20ms | 0 % | | 42.5 | TCP |\n",
		"| haproxy | 100 | – | – | 40 | 20 |\n| isthmus | 200 | – | 9.0 | 90 | 30 |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestFiguresHaveTheirPlace(t *testing.T) {
	page := "# Title\n" + beginFigures + "old\n" + endFigures + "end\n"
	got, ok := between(page, "new")
	if again, _ := between(got, "new"); !ok || again != got || !strings.HasPrefix(got, "# Title\n") || !strings.HasSuffix(got, endFigures+"end\n") || strings.Contains(got, "old") {
		t.Errorf("%v: %q", ok, got)
	}
	if _, ok := between("no marks", "new"); ok {
		t.Error("a page without marks was taken")
	}
}

func TestCarriedBy(t *testing.T) {
	for _, c := range []struct {
		load      string
		datagrams float64
		done      int64
		want      string
	}{
		{loadKept, 2500, 1000, "QUIC"},
		{loadKept, 12, 1000, "TCP"},
		{loadKept, 1000, 1000, "both"},
		{loadBulk, 1000, 1452 * 1000, "QUIC"},
		{loadBulk, 10, 1452 * 1000, "TCP"},
		{loadKept, 5, 0, "nothing"},
	} {
		if got := carriedBy(c.load, c.datagrams, c.done); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
