package capture

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/nftables"
)

// glance is how often Stay looks whether the rules still stand. What flushes the kernel's rules (a firewall that is loaded anew) opens a gap
// of that length, in which connections to services find nobody.
const glance = 2 * time.Second

// Stay puts the rules in force, keeps them so until ctx ends, and then takes them out. It returns early only when they could not be put in
// force to begin with.
func Stay(ctx context.Context, r Rules, to *slog.Logger) error {
	if err := Install(r); err != nil {
		return err
	}
	whole, err := standing()
	if err != nil {
		return err
	}
	to.InfoContext(ctx, "rules in force", "rules", whole)
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return Remove()
		case <-tick.C:
		}
		switch restored, err := keep(r, whole); {
		case err != nil:
			to.ErrorContext(ctx, "rules not in force", "error", err)
		case restored:
			to.WarnContext(ctx, "rules had been taken out by somebody, and are in force again")
		}
	}
}

// keep puts the rules in force again when others than whole are there, and reports whether it had to.
func keep(r Rules, whole int) (restored bool, err error) {
	n, err := standing()
	if err != nil || n == whole {
		return false, err
	}
	return true, Install(r)
}

// standing counts the rules of our table that the kernel has. No table has none.
func standing() (int, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("capture: %w", err)
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return 0, fmt.Errorf("capture: nftables: %w", err)
	}
	n := 0
	for _, chain := range chains {
		if chain.Table.Name != Table {
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return 0, fmt.Errorf("capture: nftables: %w", err)
		}
		n += len(rules)
	}
	return n, nil
}
