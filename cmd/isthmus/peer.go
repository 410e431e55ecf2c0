package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

// peerPoll is how often control is asked whether something has happened.
const peerPoll = 250 * time.Millisecond

func newPeer(g *global) *cobra.Command {
	c := &cobra.Command{
		Use:   "peer",
		Short: "Link two clusters: invite, accept, list, remove",
		Long: `Two clusters are linked when each has a ClusterPeer that lets the other in. An invitation is that manifest, made by the cluster that it
lets in; accepting it puts it into the other cluster.

  isthmus peer invite --context A | isthmus peer accept --context B | isthmus peer accept --context A

links A and B: the accept in the middle answers with the invitation of B. Without pipes, hand the files over; no credential of one
cluster goes to the other.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newPeerInvite(g), newPeerAccept(g), newPeerList(g), newPeerRemove(g))
	return c
}

func newPeerInvite(g *global) *cobra.Command {
	var cluster string
	c := &cobra.Command{
		Use:     "invite",
		Short:   "What another cluster needs to let this one in",
		Example: example("isthmus peer invite --context eu > eu.yaml", "isthmus peer invite --context eu | isthmus peer accept --context us > us.yaml"),
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, self, _, err := g.selfOf(c.Context(), cluster)
			if err != nil {
				return err
			}
			warnUnreachable(c.ErrOrStderr(), self)
			_, err = io.WriteString(c.OutOrStdout(), invitation{Introduction: self}.String())
			return err
		},
	}
	c.Flags().StringVar(&cluster, "cluster", "", "which `cluster` invites, when several are meant")
	return c
}

// selfOf asks the one cluster that is meant who it is.
func (g *global) selfOf(ctx context.Context, cluster string) (target, admin.Introduction, admin.Status, error) {
	t, err := g.one(ctx, cluster)
	if err != nil {
		return t, admin.Introduction{}, admin.Status{}, err
	}
	a := askEach(ctx, g.timeout, []target{t}, (*admin.Client).Introduction)[0]
	return t, a.answer, a.status, a.err
}

// warnUnreachable says when nobody can dial the cluster.
func warnUnreachable(chatter io.Writer, self admin.Introduction) {
	if len(self.BusURLs) == 0 {
		_, _ = fmt.Fprintf(chatter, "%s advertises no address of its bus (bus.advertise): it must dial the other side, so that side needs one\n", self.Cluster)
	}
}

func newPeerAccept(g *global) *cobra.Command {
	a := acceptance{global: g}
	c := &cobra.Command{
		Use:   "accept [FILE | -]",
		Short: "Let the cluster of an invitation in",
		Long: `accept reads an invitation from FILE or standard input, checks it, and declares its ClusterPeer in this cluster: by server-side apply on
Kubernetes, as peer-NAME.yaml in the folder that control reads otherwise. Standard output has the invitation of this cluster, for the
other side to accept; none when the invitation was itself an answer, as the other side has let this cluster in already.

It refuses a cluster's own invitation, and one with another fingerprint than the ClusterPeer of that name has: that is another cluster.`,
		Example: example("isthmus peer accept --context us eu.yaml > us.yaml",
			"isthmus peer invite --context eu | isthmus peer accept --context us | isthmus peer accept --context eu --wait"),
		Args: upToOneArg,
		RunE: func(c *cobra.Command, args []string) error {
			name := "-"
			if len(args) > 0 {
				name = args[0]
			}
			return a.run(c.Context(), name, c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	flags := c.Flags()
	flags.BoolVar(&a.replace, "replace", false, "let another cluster take the place of the one that has its name")
	flags.BoolVar(&a.wait, "wait", false, "wait until the peer's word is fresh; it never is before the other side has accepted too")
	flags.DurationVar(&a.patience, "patience", 2*time.Minute, "how long --wait waits")
	flags.StringVar(&a.cluster, "cluster", "", "which `cluster` accepts, when several are meant")
	return c
}

// acceptance is one isthmus peer accept.
type acceptance struct {
	*global
	cluster       string
	replace, wait bool
	patience      time.Duration
}

func (a *acceptance) run(ctx context.Context, name string, stdin io.Reader, stdout, chatter io.Writer) error {
	invited, err := a.read(name, stdin, chatter)
	if err != nil {
		return err
	}
	t, self, status, err := a.selfOf(ctx, a.cluster)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	store, err := peerStoreOf(t, status)
	if err != nil {
		return err
	}
	known, err := store.list(bounded)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(known, func(k admin.Introduction) bool { return k.Cluster == invited.Cluster }); i >= 0 && len(invited.Namespaces) == 0 {
		invited.Namespaces = known[i].Namespaces // whoever invites doesn't know of them; they are this side's to take away
	}
	changes, err := invited.verify(self, known, a.replace)
	if err != nil {
		return fmt.Errorf("%s does not accept: %w", self.Cluster, err)
	}
	if len(changes) == 0 {
		_, _ = fmt.Fprintf(chatter, "%s is let into %s already, by the same ClusterPeer\n", invited.Cluster, self.Cluster)
	} else if err := a.put(bounded, t, store, invited, changes, chatter); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(chatter, "  fingerprint   %s\n  trust domain  %s\n  bus           %s\n  pods          %s\nCompare the fingerprint with what \"isthmus introduction\" says in %s.\n",
		invited.RootFingerprint, invited.TrustDomain, cmp.Or(list(invited.BusURLs), "none: "+invited.Cluster+" dials"),
		cmp.Or(list(invited.PodCIDRs), "not said: copies of headless services get addresses that stand for them"), invited.Cluster)
	answered := invited.answers == self.Cluster // else it is printed even if the other side has it: what reads it may be an accept
	if len(invited.BusURLs) == 0 && len(self.BusURLs) == 0 {
		return finding{fmt.Sprintf("neither %s nor %s advertises an address of its bus (bus.advertise): they can't reach each other", self.Cluster, invited.Cluster)}
	}
	if !answered {
		_, _ = fmt.Fprintf(chatter, "Next, in %s: isthmus peer accept, with what standard output has here\n", invited.Cluster)
		if _, err := io.WriteString(stdout, invitation{self, invited.Cluster}.String()); err != nil {
			return err
		}
	}
	if a.wait {
		return a.waitFresh(ctx, t, status, invited.Cluster, chatter)
	}
	if answered {
		_, _ = fmt.Fprintf(chatter, "Next: isthmus status shows peer %s Fresh within seconds; then export a Service (ServiceExport) and call it from the other cluster\n", invited.Cluster)
	}
	return nil
}

func (a *acceptance) read(name string, stdin io.Reader, chatter io.Writer) (invitation, error) {
	if name == "-" {
		if f, ok := stdin.(*os.File); ok {
			if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
				_, _ = fmt.Fprintln(chatter, "Paste the invitation, to its last line (...):")
			}
		}
		return readInvitation("standard input", stdin)
	}
	f, err := os.Open(name) //nolint:gosec // G304: the file that the user names
	if err != nil {
		return invitation{}, err
	}
	defer func() { _ = f.Close() }()
	return readInvitation(name, f)
}

// put declares the peer. A folder's control says itself that it has taken it: the folder may be another one of the same name.
func (a *acceptance) put(ctx context.Context, t target, store peerStore, invited invitation, changes []string, chatter io.Writer) error {
	where, err := store.put(ctx, invited.Introduction, a.replace)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(chatter, "%s is let in: %s (%s)\n", invited.Cluster, where, strings.Join(changes, "; "))
	if t.kube != nil {
		return nil
	}
	_, err = pollPeer(ctx, t, invited.Cluster, func(p *admin.Peer) bool { return p != nil && p.RootFingerprint == invited.RootFingerprint })
	if err != nil {
		return fmt.Errorf("%s is written, but its control does not know the peer yet (see isthmus status): %w", where, err)
	}
	return nil
}

func (a *acceptance) waitFresh(ctx context.Context, t target, status admin.Status, cluster string, chatter io.Writer) error {
	self := status.Cluster
	bounded, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	_, _ = fmt.Fprintf(chatter, "waiting until the word of %s is fresh in %s\n", cluster, self)
	last, err := pollPeer(bounded, t, cluster, func(p *admin.Peer) bool { return p != nil && p.State == "Fresh" })
	if err != nil {
		said := "is not known yet"
		if i := slices.IndexFunc(status.Peers, func(p admin.Peer) bool { return p.Cluster == cluster }); last == nil && i >= 0 {
			last = &status.Peers[i]
		}
		if last != nil {
			said = strings.TrimSpace(fmt.Sprintf("is %s (bus %s) %s", last.State, last.Bus, last.Reason))
		}
		return advised{
			fmt.Errorf("peer %s %s in %s: %w", cluster, said, self, err),
			fmt.Sprintf("Has %s accepted the invitation of %s? Can one of them reach the other's bus? isthmus check --context A,B says.", cluster, self),
		}
	}
	_, _ = fmt.Fprintf(chatter, "%s and %s are linked. Next: export a Service (ServiceExport), and call it from the other cluster\n", self, cluster)
	return nil
}

// pollPeer asks until is says yes to what control knows of a peer (nil: nothing), and returns what it knew last.
func pollPeer(ctx context.Context, t target, cluster string, is func(*admin.Peer) bool) (last *admin.Peer, err error) {
	for {
		peers, err := t.Peers(ctx)
		if err == nil {
			last = nil
			if i := slices.IndexFunc(peers, func(p admin.Peer) bool { return p.Cluster == cluster }); i >= 0 {
				last = &peers[i]
			}
			if is(last) {
				return last, nil
			}
		}
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(peerPoll):
		}
	}
}

func newPeerList(g *global) *cobra.Command {
	format := output.TableFormat
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "The clusters that are let in, and how fresh their word is",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			k, err := kindOf("peers")
			if err != nil {
				return err
			}
			return k.get(c.Context(), g, c, format)
		},
	}
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func newPeerRemove(g *global) *cobra.Command {
	var cluster string
	c := &cobra.Command{
		Use:     "remove NAME",
		Aliases: []string{"rm"},
		Short:   "Cut a cluster off",
		Long: `remove takes the ClusterPeer of a cluster away: calls from and to it end at once. Do the same in the other cluster, which otherwise goes
on knocking.`,
		Example: example("isthmus peer remove us --context eu"),
		Args:    oneArg,
		ValidArgsFunction: func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, a := range askToComplete(g, c, (*admin.Client).Peers) {
				for _, p := range a.answer {
					names = append(names, p.Cluster)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			t, self, status, err := g.selfOf(c.Context(), cluster)
			if err != nil {
				return err
			}
			store, err := peerStoreOf(t, status)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), g.timeout)
			defer cancel()
			where, err := store.remove(ctx, args[0])
			if errors.Is(err, errNoPeer) {
				var names []string
				for _, p := range status.Peers {
					names = append(names, p.Cluster)
				}
				return fmt.Errorf("%s has no peer %q; it has: %s", self.Cluster, args[0], cmp.Or(list(names), "none"))
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.ErrOrStderr(), "%s is cut off from %s (%s). Next, in %s: isthmus peer remove %s\n", args[0], self.Cluster, where, args[0], self.Cluster)
			return err
		},
	}
	c.Flags().StringVar(&cluster, "cluster", "", "from which `cluster`, when several are meant")
	return c
}
