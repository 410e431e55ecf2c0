package kindtests

import (
	"context"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// What a node does not pass on. Who dialed whom is no matter: the port is the one that was dialed, a NodePort of the chart (gateway.service.nodePortBase),
// before it was translated; both directions of a connection have it.
const (
	unblocked = "add table inet isthmus-block\ndelete table inet isthmus-block\n" // also where there is none
	blocked   = unblocked + `table inet isthmus-block {
	chain forward {
		type filter hook forward priority filter; policy accept;
		meta l4proto PROTOCOLS ct original proto-dst 30743-30799 drop
	}
}
`
)

func blockedOf(protocols string) string { return strings.Replace(blocked, "PROTOCOLS", protocols, 1) }

func (s *scenario) block(_ *testscript.TestScript, args []string) error {
	what, c, err := s.fault(args)
	if err != nil {
		return err
	}
	rules := map[string]string{"none": unblocked, "udp": blockedOf("udp"), "all": blockedOf("{ tcp, udp }")}[what]
	if rules == "" || c.node == "" {
		return errUsage
	}
	return c.nft(s.ctx, rules)
}

// nft puts rules in force in a cluster's node, all at once.
func (c *member) nft(ctx context.Context, rules string) error {
	_, _, err := run(ctx, rules, "docker", "exec", "-i", c.node, "nft", "-f", "-")
	return err
}
