package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/version"
	"github.com/isthmus-mesh/isthmus/sidecar/capture"
)

const help = `isthmus-capture makes the kernel bring connections to services of the mesh to the sidecar, and ends.

Usage:
  isthmus-capture --to PREFIX[,PREFIX…] [--port N] [--skip-user UID[,UID…] | --node IP] [--skip-to PREFIX[,…]]
                  [--skip-ports N[,…]] [--stay [--to-file FILE]]
  isthmus-capture --verify --to PREFIX[,PREFIX…] …
  isthmus-capture --remove
  isthmus-capture --help | --version

  --to 241.0.0.0/8        Which destinations: the addresses of services. Connections to others are never
                          touched. Required.
  --port 15006            Where the sidecar takes them (listen.captured in its configuration).
                          Default 15006.
  --skip-user 15000       User ID of the sidecar, whose own connections are left alone. Without it,
                          those would come back to it for ever: needed in a pod. More may follow.
  --skip-to 241.7.0.0/16  Destinations among those of --to that are left alone.
  --skip-ports 22,9090    Destination ports that are left alone.
  --node 192.0.2.7        On a node: the address on which the node proxy takes them. What the node's pods
                          open is captured, and what its own processes open, but for --skip-user's.
  --stay                  Doesn't end: puts the rules in force again when somebody takes them out, and takes
                          them out itself on SIGTERM or SIGINT.
  --verify                Changes nothing, and needs no right: finds out whether the rules are in force, by opening a
                          connection. Before the sidecar runs, as a user that is not left alone.
  --to-file FILE          With --stay: more destinations, one prefix a line, as the node proxy writes them
                          (captureFile in its configuration): the pods of other clusters. Read every two
                          seconds. Private ranges only, and nothing that holds an address of this machine.
  --remove                Takes the rules out again.

The rules are the nftables table "inet isthmus" of the network namespace that it runs in; they are
replaced as a whole. Look at them with: nft list table inet isthmus. It needs CAP_NET_ADMIN.

Exit codes: 0 done, 1 failed, 2 usage.
`

// options are what the command line says.
type options struct {
	help, version, remove, stay, verify bool
	toFile                              string
	rules                               capture.Rules
}

func parse(args []string) (options, error) {
	var o options
	var to, node, skipTo, skipPorts, skipUsers string
	var port uint
	flags := flag.NewFlagSet("isthmus-capture", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned, help goes to standard output
	flags.StringVar(&to, "to", "", "")
	flags.UintVar(&port, "port", 15006, "")
	flags.StringVar(&skipUsers, "skip-user", "", "")
	flags.StringVar(&skipTo, "skip-to", "", "")
	flags.StringVar(&skipPorts, "skip-ports", "", "")
	flags.StringVar(&node, "node", "", "")
	flags.BoolVar(&o.remove, "remove", false, "")
	flags.BoolVar(&o.stay, "stay", false, "")
	flags.BoolVar(&o.verify, "verify", false, "")
	flags.StringVar(&o.toFile, "to-file", "", "")
	flags.BoolVar(&o.version, "version", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		o.help = true
		return o, nil
	case err != nil:
		return o, &usageError{err}
	case flags.NArg() > 0:
		return o, &usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	case o.version || o.remove:
		return o, nil
	case o.toFile != "" && !o.stay:
		return o, &usageError{errors.New("--to-file is followed, and --stay is missing")}
	case port > math.MaxUint16:
		return o, &usageError{fmt.Errorf("--port %d: want 1 to 65535", port)}
	}
	o.rules.Port = uint16(port)
	err := errors.Join(
		list("--to", to, "prefixes such as 241.0.0.0/8", netip.ParsePrefix, &o.rules.To),
		list("--skip-to", skipTo, "prefixes such as 241.7.0.0/16", netip.ParsePrefix, &o.rules.SkipTo),
		list("--skip-ports", skipPorts, "ports, 1 to 65535", port16, &o.rules.SkipPorts),
		list("--skip-user", skipUsers, "user IDs", userID, &o.rules.SkipUsers),
	)
	switch {
	case err != nil:
		return o, &usageError{err}
	case node == "" && len(o.rules.SkipUsers) == 0:
		return o, &usageError{errors.New("--skip-user or --node is missing: the sidecar's own connections would come back to it")}
	}
	if node != "" {
		var err error
		if o.rules.Node, err = netip.ParseAddr(node); err != nil || o.rules.Node.IsUnspecified() {
			return o, &usageError{fmt.Errorf("--node %q: want an address of this machine", node)}
		}
	}
	if err := o.rules.Check(); err != nil {
		return o, &usageError{err}
	}
	return o, nil
}

// list reads the values of a flag, which are separated by commas.
func list[T any](flag, values, want string, read func(string) (T, error), into *[]T) error {
	for v := range strings.SplitSeq(values, ",") {
		if v = strings.TrimSpace(v); v == "" {
			continue
		}
		value, err := read(v)
		if err != nil {
			return fmt.Errorf("%s %q: want %s", flag, values, want)
		}
		*into = append(*into, value)
	}
	return nil
}

func port16(v string) (uint16, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

func userID(v string) (uint32, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	return uint32(n), err
}

// do carries out what the command line says.
func (o options) do(ctx context.Context, stdout, stderr io.Writer) error {
	switch {
	case o.version:
		_, err := fmt.Fprintln(stdout, "isthmus-capture", version.Long())
		return err
	case o.remove:
		return capture.Remove()
	case o.verify:
		err := capture.Verify(ctx, o.rules)
		if errors.Is(err, capture.ErrNotInForce) {
			err = fmt.Errorf("%w. In a Pod: its node has no isthmus-cni, or had none yet when the Pod was made, and then the Pod has to be deleted", err)
		}
		return err
	case o.stay:
		return capture.Stay(ctx, o.rules, o.toFile, slog.New(slog.NewTextHandler(stderr, nil)))
	default:
		return capture.Install(o.rules)
	}
}
