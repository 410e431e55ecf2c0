package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
)

// rotation is one isthmus trust rotate.
type rotation struct {
	*global
	format                         output.Format
	cluster                        string
	status, activate, abort, force bool
	dryRun, wait                   bool
	patience                       time.Duration
	stdout, chatter                io.Writer
}

// rotated is what `isthmus trust rotate -o json` prints.
type rotated struct {
	Cluster     string `json:"cluster"`
	TrustDomain string `json:"trust_domain"`
	DryRun      bool   `json:"dry_run,omitempty"`
	admin.Rotation
}

func newTrustRotate(g *global) *cobra.Command {
	r := rotation{global: g, format: output.TableFormat}
	c := &cobra.Command{
		Use:   "rotate [DOMAIN] [--status | --activate | --abort]",
		Short: "Give a trust domain a new root, in steps that can be undone",
		Long: `rotate changes the root of a cluster's own trust domain, in four steps:

  prepare    the next key is made; nobody is told
  publish    its root is in the bundle: every peer and every program of the cluster hears of it, and says when it is in force there
  activate   it signs, once all of them have said so; whoever has not yet holds this step, and is named
  retire     the old root leaves the bundle, when all that was issued under it has ended

Without a flag it takes the first two steps; with --wait also the third, as soon as nobody holds it. --activate takes the third by itself, --activate --force
although somebody holds it: what that one does not know yet, it refuses. --abort undoes what is not activated; after that there is no way back but
another rotation. The schedule takes the same steps: it publishes at half of the root's life and activates at three quarters.

With several clusters, DOMAIN (or --cluster) says whose root is meant.`,
		Example:           example("isthmus trust rotate us --wait", "isthmus trust rotate us --status", "isthmus trust rotate us --activate --force", "isthmus trust rotate us --abort"),
		Args:              upToOneArg,
		ValidArgsFunction: g.completeDomains,
		RunE: func(c *cobra.Command, args []string) error {
			r.stdout, r.chatter = c.OutOrStdout(), c.ErrOrStderr()
			if err := r.check(); err != nil {
				return usage{err}
			}
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			return r.run(c.Context(), name)
		},
	}
	flags := c.Flags()
	flags.BoolVar(&r.status, "status", false, "only say how far it is, and who holds it")
	flags.BoolVar(&r.activate, "activate", false, "take the third step now")
	flags.BoolVar(&r.abort, "abort", false, "undo what is not activated")
	flags.BoolVar(&r.force, "force", false, "with --activate: although somebody holds it")
	flags.BoolVar(&r.dryRun, "dry-run", false, "say what would be done, and do nothing")
	flags.BoolVar(&r.wait, "wait", false, "wait until nobody holds it, activate, and say meanwhile who is waited for; with --status only watch")
	flags.DurationVar(&r.patience, "patience", 10*time.Minute, "how long --wait waits")
	flags.StringVar(&r.cluster, "cluster", "", "the `cluster` whose root is meant, when several are")
	flags.VarP(&r.format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

func (r *rotation) check() error {
	steps := 0
	for _, given := range []bool{r.status, r.activate, r.abort} {
		if given {
			steps++
		}
	}
	switch {
	case steps > 1:
		return errors.New("one of --status, --activate and --abort")
	case r.force && !r.activate:
		return errors.New("--force goes with --activate")
	case r.wait && (r.abort || r.dryRun):
		return errors.New("there is nothing to --wait for")
	}
	return nil
}

func (r *rotation) run(ctx context.Context, domain string) error {
	t, now, err := r.target(ctx, domain)
	if err != nil {
		return err
	}
	out := rotated{Cluster: now.Cluster, TrustDomain: now.TrustDomain, Rotation: now.Rotation, DryRun: r.dryRun}
	if step := r.step(now.Rotation); step != "" {
		if out.Rotation, err = r.take(ctx, t, step); err != nil {
			return r.advise(err, now)
		}
		r.say(step, out, now.Now)
	}
	if r.wait {
		if out.Rotation, err = r.await(ctx, t, out); err != nil {
			return err
		}
	}
	err = output.Write(r.stdout, r.format, out, func() output.Table { return memberTable(out, now.Now) })
	if err == nil && r.status && out.Phase == admin.RotationPublished && len(out.Holds) > 0 {
		err = finding{fmt.Sprintf("%s: held: %s", out.TrustDomain, strings.Join(out.Holds, "; "))}
	}
	return err
}

// step is what is to be done at once; empty: nothing.
func (r *rotation) step(now admin.Rotation) string {
	switch {
	case r.status, r.wait && (r.activate || now.Phase == admin.RotationPublished):
		return ""
	case r.activate:
		return "activate"
	case r.abort:
		return "abort"
	default:
		return "start"
	}
}

func (r *rotation) take(ctx context.Context, t target, step string) (admin.Rotation, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	return t.Rotate(ctx, admin.RotationRequest{Step: step, Force: r.force, DryRun: r.dryRun})
}

// target is the cluster whose root is meant: the only one, or that of a domain.
func (r *rotation) target(ctx context.Context, domain string) (target, admin.Trust, error) {
	all, err := r.askTrust(ctx)
	if err != nil {
		return target{}, admin.Trust{}, err
	}
	there := answered(all)
	wanted := r.cluster
	if domain != "" {
		i, td, err := ownerOf(all, there, domain)
		if err != nil {
			return target{}, admin.Trust{}, err
		}
		if wanted != "" && wanted != there[i].answer.Cluster {
			return target{}, admin.Trust{}, usage{fmt.Errorf("%s is the domain of %s, not of %s", td, there[i].answer.Cluster, wanted)}
		}
		wanted = there[i].answer.Cluster
	}
	if wanted == "" && len(all) == 1 {
		return there[0].client, there[0].answer, nil
	}
	if wanted == "" {
		return target{}, admin.Trust{}, usage{fmt.Errorf("whose root? %d clusters are meant: name one", len(all))}
	}
	for _, a := range there {
		if a.answer.Cluster == wanted {
			return a.client, a.answer, nil
		}
	}
	return target{}, admin.Trust{}, noCluster(wanted, all)
}

// ownerOf finds, among those that answered, the cluster whose own a domain is. That one has not answered is another error than that it is not meant.
func ownerOf(all, there []asked[admin.Trust], domain string) (i int, td string, err error) {
	silent := failures(all)
	if td, err = findDomain(there, domain); err != nil {
		if silent != nil {
			err = fmt.Errorf("%s is known to none that answered: %w", domain, silent)
		}
		return 0, "", err
	}
	if i = slices.IndexFunc(there, func(a asked[admin.Trust]) bool { return a.answer.TrustDomain == td }); i >= 0 {
		return i, td, nil
	}
	if silent != nil {
		return 0, "", fmt.Errorf("%s: its own control plane is none of those that answered: %w", td, silent)
	}
	return 0, "", usage{fmt.Errorf("%s is the domain of none of the clusters that are meant: name its own with --context or --control", td)}
}

// advise adds who holds a step to the error of who wanted to take it.
func (r *rotation) advise(err error, now admin.Trust) error {
	if r.activate && oldLives(now.Rotation) {
		return advised{err, oldLivesText(now.Rotation, now.Now) + ". --force does not help: isthmus trust rotate " + now.TrustDomain + " --wait --patience 2h takes the step then."}
	}
	if !r.activate || r.force || len(now.Rotation.Holds) == 0 || errors.Is(err, admin.ErrUnreachable) {
		return err
	}
	return advised{err, "Held by: " + strings.Join(now.Rotation.Holds, "; ") + "\nWait for them, or take the step with --activate --force: they will refuse this domain's new identities until they have heard."}
}

// oldLives tells that the rotation before is not over: the next root can't sign yet, whatever is forced.
func oldLives(r admin.Rotation) bool {
	return r.Phase == admin.RotationPublished && !r.Retires.IsZero()
}

func oldLivesText(r admin.Rotation, now time.Time) string {
	return "The root before the last still vouches for identities, until " + r.Retires.UTC().Format(time.RFC3339) + " (" + ends(now, r.Retires) + "): wait"
}

func (r *rotation) say(step string, out rotated, now time.Time) {
	done := map[string]string{"start": "the next root is made and published", "activate": "the next root signs", "abort": "the rotation is undone"}[step]
	if out.DryRun {
		done = "would be done: " + step
	}
	_, _ = fmt.Fprintf(r.chatter, "%s: %s; %s\n", out.TrustDomain, done, phaseText(out.Rotation, now))
	if step == "start" && !out.DryRun && !r.wait {
		_, _ = fmt.Fprintf(r.chatter, "Next: isthmus trust rotate %s --wait activates it once everybody has it; --status says who does\n", out.TrustDomain)
	}
}

// rotationPoll is how often control is asked how far it is.
const rotationPoll = 500 * time.Millisecond

// await waits until the next root signs, and says each change of who is waited for.
func (r *rotation) await(ctx context.Context, t target, out rotated) (admin.Rotation, error) {
	bounded, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	last, said := out.Rotation, ""
	for last.Phase == admin.RotationPrepared || last.Phase == admin.RotationPublished {
		if text := waitText(last); text != said {
			said = text
			_, _ = fmt.Fprintf(r.chatter, "%s: %s\n", out.TrustDomain, text)
		}
		select {
		case <-bounded.Done():
			return last, advised{
				fmt.Errorf("%s is %s, and not activated: %w", out.TrustDomain, last.Phase, bounded.Err()),
				"It stays " + last.Phase + ": isthmus trust rotate " + out.TrustDomain + " --wait or --activate takes it further, and the schedule does when a quarter of the old root's life is left. " +
					"Who holds it: isthmus trust rotate " + out.TrustDomain + " --status",
			}
		case <-time.After(rotationPoll):
		}
		one, cancelOne := context.WithTimeout(bounded, r.timeout)
		now, err := t.Trust(one)
		cancelOne()
		if err != nil {
			continue // control may be restarting
		}
		last = now.Rotation
		if r.status || last.Phase != admin.RotationPublished || len(last.Holds) > 0 && !r.force {
			continue
		}
		next, err := r.take(bounded, t, "activate")
		refused, is := errors.AsType[*admin.Error](err)
		switch {
		case err == nil:
			last = next
		case is && refused.Status == http.StatusConflict: // somebody holds it again, or was faster
		case is:
			return last, err
		}
	}
	_, _ = fmt.Fprintf(r.chatter, "%s: the new root signs\n", out.TrustDomain)
	return last, nil
}

func waitText(r admin.Rotation) string {
	have := 0
	var missing []string
	for _, m := range r.Members {
		if m.Acknowledged {
			have++
		} else {
			missing = append(missing, strings.TrimSpace(m.Name+" "+parenthesised(m.Reason)))
		}
	}
	text := fmt.Sprintf("%s; %d of %d have the next root in force", r.Phase, have, len(r.Members))
	const most = 5
	if n := len(missing); n > most {
		missing = append(missing[:most], fmt.Sprintf("and %d more", n-most))
	}
	if len(missing) > 0 {
		text += "; waiting for " + list(missing)
	}
	if oldLives(r) {
		text += "; the root before the last still lives until " + r.Retires.UTC().Format(time.RFC3339)
	}
	return text
}

func parenthesised(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

// phaseText says how far a rotation is.
func phaseText(r admin.Rotation, now time.Time) string {
	text := cmp.Or(r.Phase, admin.RotationIdle)
	if r.Phase != admin.RotationIdle && !r.Since.IsZero() {
		text += " for " + age(now, r.Since)
	}
	if r.Automatic {
		text += ", by the schedule"
	}
	if !r.NextStep.IsZero() {
		text += ", next step " + ends(now, r.NextStep)
	}
	if r.Phase == admin.RotationActivated && !r.Retires.IsZero() {
		text += ", the old root retires " + ends(now, r.Retires)
	}
	if len(r.Holds) > 0 {
		text += ", held: " + strings.Join(r.Holds, "; ")
	}
	return text
}

func memberTable(r rotated, now time.Time) output.Table {
	t := output.Table{
		Columns: []string{"CLUSTER", "PHASE", "MEMBER", "HAS IT", "HEARD", "WHY NOT"},
		Empty:   fmt.Sprintf("%s: %s", r.TrustDomain, phaseText(r.Rotation, now)),
	}
	for _, m := range r.Members {
		heard := age(now, m.LastHeard)
		if heard != "" {
			heard += " ago"
		}
		t.Row(r.Cluster, r.Phase, m.Name, yesNo(m.Acknowledged), heard, m.Reason)
	}
	return t
}
