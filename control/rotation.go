package control

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// comingBack is how long after its start a control plane takes it that programs are still coming back: nothing is concluded from who is not
// connected.
const comingBack = 30 * time.Second

// acknowledgements tell which trust bundles are in force, here and at the peers. Safe for concurrent use.
type acknowledgements struct {
	mu    sync.Mutex
	told  map[spiffeid.TrustDomain]toldBundle // guarded by mu: what the own programs were told last
	acked map[spiffeid.TrustDomain]uint64     // guarded by mu: of peers, the sequence that is in force in every program here
	next  nextRoot                            // guarded by mu
}

// toldBundle is a peer's bundle as the own programs were told it.
type toldBundle struct {
	sequence uint64
	revision uint64 // of the config stream, that it came with
}

// nextRoot is the own next root, while it is published.
type nextRoot struct {
	key      [sha256.Size]byte
	revision uint64 // of the config stream, that own programs were told of it with; 0: not yet
	sequence uint64 // of the own bundle, that peers were told of it with; 0: not yet
}

// note takes down what the own programs were told: of peers, and of the own domain. bundles has the revisions.
func (a *acknowledgements) note(
	views []*federation.View, own spiffeid.TrustDomain, roots []*x509.Certificate, next *x509.Certificate, bundles map[string]toldResource,
) {
	a.mu.Lock()
	defer a.mu.Unlock()
	told := make(map[spiffeid.TrustDomain]toldBundle, len(views))
	for _, v := range views {
		told[v.Domain] = toldBundle{v.BundleSequence, bundles[configstream.BundleKey(v.Domain)].revision}
	}
	a.told = told
	maps.DeleteFunc(a.acked, func(td spiffeid.TrustDomain, _ uint64) bool { _, stays := told[td]; return !stays })
	if next == nil || !slices.ContainsFunc(roots, next.Equal) {
		a.next = nextRoot{}
		return
	}
	if key := trust.Fingerprint(next); a.next.key != key {
		a.next = nextRoot{key: key, revision: bundles[configstream.BundleKey(own)].revision}
	}
}

// published takes down what peers were told last.
func (a *acknowledgements) published(own trust.Bundle, sequence uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next.revision == 0 || a.next.sequence > 0 {
		return
	}
	for _, c := range own.Authorities {
		if trust.Fingerprint(c) == a.next.key {
			a.next.sequence = sequence
		}
	}
}

// reckon returns what peers may be told: which of their bundles are in force in each of the programs, of which applied says how far they are.
func (a *acknowledgements) reckon(applied map[string]uint64) map[spiffeid.TrustDomain]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	for td, told := range a.told {
		behind := false
		for _, revision := range applied {
			behind = behind || revision < told.revision
		}
		if !behind {
			if a.acked == nil {
				a.acked = make(map[spiffeid.TrustDomain]uint64)
			}
			a.acked[td] = told.sequence
		}
	}
	return maps.Clone(a.acked)
}

// reckoned returns what reckon did last.
func (a *acknowledgements) reckoned() map[spiffeid.TrustDomain]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.acked)
}

func (a *acknowledgements) nextRoot() nextRoot {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.next
}

// applied returns up to which revision each connected program says that everything is in force, by receiver.
func (c *Control) applied() map[string]uint64 {
	out := make(map[string]uint64)
	for _, s := range c.stream.Sessions() {
		// Of two streams of one program the older is dead, and what was in force stays so.
		out[s.Receiver] = max(out[s.Receiver], s.Applied())
	}
	return out
}

// rotates is an authority whose root is changed here, by steps.
type rotates interface {
	Prepare() error
	Publish() error
	Activate(force bool) error
	Abort() error
}

var errNotOurs = errors.New("the authority is an upstream's: its root is changed there")

// rotation returns how far the change of the own root has come, and who holds it.
func (c *Control) rotation() admin.Rotation {
	r := c.authority.Rotation()
	out := admin.Rotation{
		Phase: string(r.Phase), Automatic: r.Automatic, Since: r.Since, NextStep: r.NextStep, Retires: r.Retires,
		Members: []admin.RotationMember{},
	}
	if r.Phase == trust.RotationPublished {
		out.Members = c.members()
		out.Holds = c.held(out.Members)
		if r.Previous != nil {
			out.Holds = append(out.Holds, "the root before the last still lives until "+r.Retires.UTC().Format(time.RFC3339)+": wait")
		}
	}
	return out
}

// rotationHolds says why the next root should not sign yet (trust.AuthorityConfig.Holds).
func (c *Control) rotationHolds(*x509.Certificate) []string {
	if c.stream == nil {
		return []string{"control has not started"}
	}
	return c.held(c.members())
}

func (c *Control) held(members []admin.RotationMember) []string {
	var out []string
	if left := comingBack - c.cfg.Now().Sub(c.started); left > 0 {
		out = append(out, fmt.Sprintf("control has just started: programs are still coming back for %s", left.Round(time.Second)))
	}
	for _, m := range members {
		if !m.Acknowledged {
			out = append(out, m.Name+": "+m.Reason)
		}
	}
	return out
}

// members are all who have to have the next root in force before it signs: clusters, then programs, each ordered by name.
func (c *Control) members() []admin.RotationMember {
	p := c.present.Load()
	if p == nil {
		return []admin.RotationMember{{Name: "cluster " + c.cfg.Cluster.String(), Reason: "its manifests have not been read yet"}}
	}
	next := c.acks.nextRoot()
	out := []admin.RotationMember{}
	for _, peer := range p.world.peers {
		if c.revoked.load().domain(peer.Domain) {
			continue // nobody of it is let in, so nobody of it has to know the root; and it might hold its peace for ever
		}
		out = append(out, peerMember(peer.Cluster, c.cfg.Domain, c.member.Views().Cluster(peer.Cluster), next))
	}
	now, applied, absent := c.cfg.Now(), c.applied(), c.absent(p.world.in.objects.Workloads)
	var receivers []string
	for receiver := range applied {
		receivers = append(receivers, receiver)
	}
	for receiver := range absent {
		receivers = append(receivers, receiver)
	}
	slices.Sort(receivers)
	for _, receiver := range receivers {
		program, name := cutProgram(receiver)
		m := admin.RotationMember{Name: program + " " + name, LastHeard: now}
		revision, connected := applied[receiver]
		switch {
		case !connected:
			m.LastHeard, m.Reason = absent[receiver].since, absent[receiver].reason
		case next.revision == 0:
			m.Reason = "has not been told yet"
		case revision == 0:
			m.Reason = "has not said what is in force in it"
		case revision < next.revision:
			m.Reason = "has been told, and has not acknowledged it"
		default:
			m.Acknowledged = true
		}
		out = append(out, m)
	}
	return out
}

// absence is why a program counts that is not connected.
type absence struct {
	since  time.Time // it was last heard; zero: not since control started
	reason string
}

// absent returns the programs that are not connected and may hold an SVID that lives: they verify others by what they were told last. Of a
// sidecar that has not been seen since control started it isn't known whether it does, until an hour (the life of an SVID) is over.
func (c *Control) absent(workloads []Workload) map[string]absence {
	now, applied, out := c.cfg.Now(), c.applied(), make(map[string]absence)
	said := c.fleet.programs()
	for receiver, ends := range c.fleet.svidEnds() {
		if _, connected := applied[receiver]; !connected && now.Before(ends) {
			out[receiver] = absence{said[receiver].gone, "is not connected; its SVID may last until " + ends.UTC().Format(time.RFC3339)}
		}
	}
	ends := c.started.Add(c.fleet.svidLifetime)
	if !c.restarted || !now.Before(ends) {
		return out
	}
	for i := range workloads {
		receiver := configstream.ProgramSidecar + "/" + workloads[i].ID()
		_, connected := applied[receiver]
		if _, seen := said[receiver]; !seen && !connected && workloads[i].Inbound != 0 {
			out[receiver] = absence{reason: "has not come back since control started; its SVID may last until " + ends.UTC().Format(time.RFC3339)}
		}
	}
	return out
}

// peerMember says whether a peer has acknowledged the own bundle with the next root.
func peerMember(cluster topology.ClusterName, own spiffeid.TrustDomain, v *federation.View, next nextRoot) admin.RotationMember {
	m := admin.RotationMember{Name: "cluster " + cluster.String()}
	if v == nil || v.Freshness == federation.Waiting {
		m.Reason = "has not been heard of yet"
		return m
	}
	m.LastHeard = v.Issued
	sequence, said := v.Acknowledged[own]
	switch {
	case next.sequence == 0:
		m.Reason = "has not been told yet"
	case said && sequence >= next.sequence:
		m.Acknowledged = true
	case v.Freshness != federation.Fresh:
		m.Reason = fmt.Sprintf("is %s: last heard at %s", v.State(), v.Issued.UTC().Format(time.RFC3339))
	case !said:
		m.Reason = "has not said which of our bundles is in force there"
	default:
		m.Reason = fmt.Sprintf("has bundle %d in force, and %d is the first with the next root", sequence, next.sequence)
	}
	return m
}

// rotate takes a step that an operator asks for.
func (c *Control) rotate(r admin.RotationRequest) error {
	a, ok := c.authority.(rotates)
	if !ok {
		return fmt.Errorf("%w: %w", trust.ErrWrongStep, errNotOurs)
	}
	if r.Force && r.Step != "activate" {
		return errBadStep("force is for activate alone")
	}
	if r.DryRun {
		return c.dryRotate(c.authority.Rotation(), r)
	}
	switch r.Step {
	case "start":
		if c.authority.Rotation().Phase != trust.RotationPrepared {
			if err := a.Prepare(); err != nil {
				return err
			}
		}
		return a.Publish()
	case "prepare":
		return a.Prepare()
	case "publish":
		return a.Publish()
	case "activate":
		return a.Activate(r.Force)
	case "abort":
		return a.Abort()
	}
	return errBadStep(fmt.Sprintf("step %q: want start, prepare, publish, activate or abort", r.Step))
}

// dryRotate says whether a step would be taken.
func (c *Control) dryRotate(now trust.Rotation, r admin.RotationRequest) error {
	in := func(phases ...trust.RotationPhase) error {
		if slices.Contains(phases, now.Phase) {
			return nil
		}
		return fmt.Errorf("%w: it is %s", trust.ErrWrongStep, now.Phase)
	}
	switch r.Step {
	case "start":
		return in(trust.RotationIdle, trust.RotationPrepared, trust.RotationActivated)
	case "prepare":
		return in(trust.RotationIdle, trust.RotationActivated)
	case "publish":
		return in(trust.RotationPrepared)
	case "abort":
		return in(trust.RotationPrepared, trust.RotationPublished)
	case "activate":
		if err := in(trust.RotationPublished); err != nil {
			return err
		}
		if now.Previous != nil {
			return fmt.Errorf("%w: the root before the last still lives until %s: wait", trust.ErrWrongStep, now.Retires.UTC().Format(time.RFC3339))
		}
		if holds := c.held(c.members()); len(holds) > 0 && !r.Force {
			return &trust.HeldError{Holds: holds}
		}
		return nil
	}
	return errBadStep(fmt.Sprintf("step %q: want start, prepare, publish, activate or abort", strings.TrimSpace(r.Step)))
}

// errBadStep is a request that makes no sense.
type errBadStep string

func (e errBadStep) Error() string { return "rotation: " + string(e) }
