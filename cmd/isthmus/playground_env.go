package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newPlaygroundEnv(p *playground) *cobra.Command {
	return &cobra.Command{
		Use:   "env CLUSTER/WORKLOAD",
		Short: "Shell lines that let this shell call as a workload of the playground",
		Long: `env prints export lines. After  eval "$(isthmus playground env eu/web)"  plain curl goes through the sidecar of eu/web, and the
other isthmus verbs speak of this playground.`,
		Example:           example(`eval "$(isthmus playground env eu/web)"`, "curl http://checkout.shop.svc.clusterset.local/"),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeWorkloads,
		RunE: func(c *cobra.Command, args []string) error {
			pg, err := p.openUp()
			if err != nil {
				return err
			}
			defer pg.Close()
			proxy, err := pg.ProxyOf(args[0])
			if err != nil {
				return err
			}
			dns, err := pg.DNSOf(args[0])
			if err != nil {
				return err
			}
			dnsHost, dnsPort, _ := strings.Cut(dns, ":")
			_, err = fmt.Fprintf(c.OutOrStdout(), `export http_proxy=http://%[1]s
export HTTP_PROXY=http://%[1]s
export no_proxy=localhost,127.0.0.1,::1
export NO_PROXY=localhost,127.0.0.1,::1
export ISTHMUS_PLAYGROUND=%[2]s
# HTTP:      curl -i http://checkout.shop.svc.clusterset.local/
# any TCP:   curl -sN --proxytunnel --proxy http://%[1]s telnet://checkout.shop.svc.clusterset.local:7000
# gRPC:      HTTPS_PROXY=http://%[1]s grpcurl -plaintext checkout.shop.svc.clusterset.local:9090 grpc.health.v1.Health/Check
# names:     dig @%[3]s -p %[4]s checkout.shop.svc.clusterset.local
# undo:      unset http_proxy HTTP_PROXY no_proxy NO_PROXY ISTHMUS_PLAYGROUND
`, proxy, shellQuote(pg.Dir()), dnsHost, dnsPort)
			return err
		},
	}
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
