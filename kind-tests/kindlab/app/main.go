// App is what the tests call, and what calls it:
//
//	app serve ADDRESS    answers each HTTP request with: copy $POD of $CLUSTER
//	app load URL         calls again and again, and prints each call that failed, and each second which cluster answered nine of ten calls since the
//	                     last time (mostly), how many were answered in all, by which cluster, and of which clusters that answered earlier none did in
//	                     the last three seconds (quiet)
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "serve":
		err = serve(ctx, args[1])
	case len(args) == 2 && args[0] == "load":
		load(ctx, args[1])
	default:
		err = errors.New("usage: app serve ADDRESS | app load URL")
	}
	if err != nil {
		slog.Error("app", "error", err)
		os.Exit(1)
	}
}

// lame is how long a copy still answers that has been told to end: whoever calls learns of it a little later.
const lame = 2 * time.Second

func serve(ctx context.Context, address string) error {
	server := &http.Server{
		Addr: address, ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, "copy %s of %s\n", os.Getenv("POD"), os.Getenv("CLUSTER"))
		}),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	time.Sleep(lame)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}

const (
	between  = 10 * time.Millisecond
	callTime = 10 * time.Second
	quiet    = 3 * time.Second
)

func load(ctx context.Context, url string) {
	client := http.Client{Timeout: callTime}
	answered, failed := map[string]int{}, 0
	last := map[string]time.Time{}
	told := map[string]int{}
	next := time.Now().Add(time.Second)
	for ctx.Err() == nil {
		from, err := call(&client, url)
		if err != nil {
			failed++
			_, _ = fmt.Fprintf(os.Stdout, "%s FAILED: %v\n", time.Now().UTC().Format(time.TimeOnly), err)
		} else {
			answered[from]++
			last[from] = time.Now()
		}
		if time.Now().After(next) {
			next = time.Now().Add(time.Second)
			report(answered, told, failed, last)
			maps.Copy(told, answered)
		}
		time.Sleep(between)
	}
	report(answered, told, failed, last)
}

func report(answered, told map[string]int, failed int, last map[string]time.Time) {
	line, total, before := "", 0, 0
	for _, from := range slices.Sorted(maps.Keys(answered)) {
		line += fmt.Sprintf(" %s=%d", from, answered[from])
		total += answered[from]
		before += told[from]
	}
	mostly := ""
	for from, n := range answered {
		if news := n - told[from]; news > 0 && 10*news >= 9*(total-before) {
			mostly = " mostly=" + from
		}
	}
	for _, from := range slices.Sorted(maps.Keys(last)) {
		if time.Since(last[from]) > quiet {
			line += " quiet=" + from
		}
	}
	_, _ = fmt.Fprintf(os.Stdout, "%s%s answered=%d failed=%d%s\n", time.Now().UTC().Format(time.TimeOnly), mostly, total, failed, line)
}

func call(client *http.Client, url string) (from string, err error) {
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	_, from, _ = strings.Cut(strings.TrimSpace(string(body)), " of ")
	return from, err
}
