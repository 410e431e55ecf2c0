package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/lab"
)

// envVariables are those that env sets.
var envVariables = []string{"http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "SPIFFE_ENDPOINT_SOCKET", envPlayground}

const unsetLine = `eval "$(isthmus playground env --unset)"`

func newPlaygroundEnv(p *playground) *cobra.Command {
	var unset bool
	c := &cobra.Command{
		Use:   "env {CLUSTER/WORKLOAD | --unset}",
		Short: "Shell lines that let this shell call as a workload of the playground",
		Long: `env prints export lines. After  eval "$(isthmus playground env eu/web)"  plain curl goes through the sidecar of eu/web, and the
other isthmus verbs speak of this playground: ISTHMUS_CONTROL and ISTHMUS_CONTEXT, which would win, are unset where they
are set. Programs that know SPIFFE have the workload's identity, by SPIFFE_ENDPOINT_SOCKET.

env --unset prints the lines that undo it. It needs no playground: use it after "isthmus playground down" too.`,
		Example: example(`eval "$(isthmus playground env eu/web)"`, "curl http://checkout.shop.svc.clusterset.local/", unsetLine),
		Args: func(_ *cobra.Command, args []string) error {
			if unset {
				return noArgs(nil, args)
			}
			if len(args) != 1 {
				return errors.New("call as whom? One CLUSTER/WORKLOAD, for example eu/web; or --unset")
			}
			return nil
		},
		ValidArgsFunction: p.completeWorkloads,
		RunE: func(c *cobra.Command, args []string) error {
			if unset {
				_, err := fmt.Fprintln(c.OutOrStdout(), "unset "+strings.Join(envVariables, " "))
				return err
			}
			pg, err := p.openUp()
			if err != nil {
				return err
			}
			defer pg.Close()
			return printEnv(c.OutOrStdout(), pg, args[0])
		},
	}
	c.Flags().BoolVar(&unset, "unset", false, "print the lines that undo it")
	return c
}

func printEnv(w io.Writer, pg *lab.Playground, workload string) error {
	proxy, err := pg.ProxyOf(workload)
	if err != nil {
		return err
	}
	dns, err := pg.DNSOf(workload)
	if err != nil {
		return err
	}
	api, err := pg.WorkloadAPIOf(workload)
	if err != nil {
		return err
	}
	dnsHost, dnsPort, _ := strings.Cut(dns, ":")
	var wins strings.Builder
	for _, name := range []string{envControl, envContext} {
		if os.Getenv(name) != "" {
			wins.WriteString("unset " + name + " # it would win over " + envPlayground + "\n")
		}
	}
	_, err = fmt.Fprintf(w, `export http_proxy=http://%[1]s
export HTTP_PROXY=http://%[1]s
export no_proxy=localhost,127.0.0.1,::1
export NO_PROXY=localhost,127.0.0.1,::1
export ISTHMUS_PLAYGROUND=%[2]s
export SPIFFE_ENDPOINT_SOCKET=%[7]s
%[5]s# HTTP:      curl -i http://checkout.shop.svc.clusterset.local/
# any TCP:   curl -sN --proxytunnel --proxy http://%[1]s telnet://checkout.shop.svc.clusterset.local:7000
# gRPC:      HTTPS_PROXY=http://%[1]s grpcurl -plaintext checkout.shop.svc.clusterset.local:9090 grpc.health.v1.Health/Check
# names:     dig @%[3]s -p %[4]s checkout.shop.svc.clusterset.local
# undo:      %[6]s
`, proxy, shellQuote(pg.Dir()), dnsHost, dnsPort, wins.String(), unsetLine, shellQuote("unix://"+api))
	return err
}

// pointsAt reports whether this shell's environment is what env printed for that playground.
func pointsAt(pg *lab.Playground) bool {
	if os.Getenv(envPlayground) == pg.Dir() {
		return true
	}
	for _, c := range pg.Spec().Clusters {
		for _, w := range c.Workloads {
			if proxy, err := pg.ProxyOf(c.Name + "/" + w.Name); err == nil && os.Getenv("http_proxy") == "http://"+proxy {
				return true
			}
		}
	}
	return false
}

// shellQuote returns s as one word of a POSIX shell.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
