package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// glance is how often Stay looks whether the rules still stand. What flushes the kernel's rules (a firewall that is loaded anew) opens a gap
// of that length, in which connections to services find nobody.
const glance = 2 * time.Second

// Stay puts the rules in force, keeps them so until ctx ends, and then takes them out. It returns early only when they could not be put in
// force to begin with. file, when there is one, names more destinations, which may change (Destinations).
func Stay(ctx context.Context, r Rules, file string, to *slog.Logger) error {
	s := &stay{base: r, file: file, log: to}
	if err := s.look(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return Remove()
		case <-tick.C:
		}
		if err := s.look(ctx); err != nil {
			to.ErrorContext(ctx, "rules not in force", "error", err)
		}
	}
}

// stay is what stays in force. It belongs to one goroutine.
type stay struct {
	base  Rules
	file  string
	log   *slog.Logger
	more  []netip.Prefix // that the file named when it was last read
	said  string         // what was last wrong with the file
	inUse []netip.Prefix
	away  []uint32 // uplinks, from which nothing is captured
	whole int      // rules that are in force; 0: none are yet
}

// look puts in force what should be and isn't.
func (s *stay) look(ctx context.Context) error {
	s.read(ctx)
	want := s.base
	want.To = append(slices.Clone(want.To), s.more...)
	var away []uint32
	if want.Node.IsValid() {
		var err error
		if away, err = uplinks(); err != nil {
			return err
		}
	}
	if s.whole > 0 && slices.Equal(s.inUse, want.To) && slices.Equal(s.away, away) {
		restored, err := keep(want, s.whole)
		if restored {
			s.log.WarnContext(ctx, "rules had been taken out by somebody, and are in force again")
		}
		return err
	}
	if err := Install(want); err != nil {
		return err
	}
	whole, err := standing()
	if err != nil {
		return err
	}
	s.inUse, s.away, s.whole = want.To, away, whole
	s.log.InfoContext(ctx, "rules in force", "rules", whole, "to", fmt.Sprint(want.To), "not_from", fmt.Sprint(away))
	return nil
}

// read takes up what the file names now. What can't be read changes nothing.
func (s *stay) read(ctx context.Context) {
	if s.file == "" {
		return
	}
	data, err := readFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return // it is written once there is something to say
	}
	var more []netip.Prefix
	if err == nil {
		var machine []netip.Addr
		if machine, err = addresses(); err == nil {
			more, err = Destinations(data, machine)
		}
	}
	if err == nil || len(more) > 0 {
		s.more = more
	}
	if said := fmt.Sprint(err); said != s.said {
		s.said = said
		if err != nil {
			s.log.ErrorContext(ctx, "not everything that the file names is captured", "file", s.file, "error", err)
		}
	}
}

// maxFile bounds the file: maxDestinations of the longest prefixes are a third of it.
const maxFile = 64 << 10

// readFile reads a file that somebody with fewer rights writes: whatever they put in its place, reading it ends, and soon.
func readFile(name string) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not wait for who writes to it.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) //nolint:gosec // G304: the command line names it
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("capture: %s is not a regular file: the node proxy writes one there", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		return nil, fmt.Errorf("capture: %s is longer than %d bytes", name, maxFile)
	}
	return data, err
}

// addresses returns those of this network namespace.
func addresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out, nil
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
