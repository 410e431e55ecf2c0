package control

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// divide finds out who enforces which quotas, and so among how many each is divided.
func (p *policing) divide() {
	for _, r := range p.w.services {
		for receiver := range r.inbounds {
			for _, id := range p.behind(receiver, r) {
				for _, q := range p.quotas[id] {
					if p.receivers[receiver] == nil {
						p.receivers[receiver] = make(map[int]struct{})
					}
					p.receivers[receiver][q.policy] = struct{}{}
				}
			}
		}
	}
	replicas := make(map[int]int)
	for _, policies := range p.receivers {
		for policy := range policies {
			replicas[policy]++
		}
	}
	for i := range p.w.in.objects.Quotas {
		if replicas[i] == 0 {
			continue
		}
		for _, q := range p.w.in.objects.Quotas[i].Resolve(p.w.domainOf, replicas[i]) {
			p.limits[i] = append(p.limits[i], configstream.EncodeQuota(&q))
		}
	}
}

// behind returns the copies that a receiver serves a Service for.
func (p *policing) behind(receiver string, r *resolved) []copyID {
	if program, name := cutProgram(receiver); program == configstream.ProgramSidecar {
		return []copyID{copyID(name)}
	}
	var out []copyID
	for i := range r.plains {
		out = append(out, p.of(r.service.Namespace, &r.plains[i]))
	}
	return out
}

// quotasOf returns the quotas that a receiver enforces for a Service.
func (p *policing) quotasOf(receiver string, r *resolved) []*configv1.Quota {
	if len(p.quotas) == 0 {
		return nil
	}
	policies := make(map[int]struct{})
	for _, id := range p.behind(receiver, r) {
		for _, q := range p.quotas[id] {
			policies[q.policy] = struct{}{}
		}
	}
	var out []*configv1.Quota
	for _, i := range slices.Sorted(maps.Keys(policies)) {
		if len(out)+len(p.limits[i]) > configstream.MaxQuotas {
			o := &p.w.in.objects.Quotas[i]
			p.w.problems = append(p.w.problems, Problem{
				Source: o.Source, Object: o.Object(),
				Reason: fmt.Sprintf("is not in force for %s: with those before it there are more than %d limits", r.service.ID, configstream.MaxQuotas),
			})
			continue
		}
		out = append(out, p.limits[i]...)
	}
	return out
}

// Resolve turns a policy's limits into what so many sidecars enforce, with trust domains in the place of clusters; as AccessPolicy.Resolve.
func (p *QuotaPolicy) Resolve(domainOf func(cluster string) spiffeid.TrustDomain, replicas int) []topology.Quota {
	var out []topology.Quota
	for _, l := range p.Limits {
		q := topology.Quota{
			Name: p.Namespace + "/" + p.Name + "/" + l.Name, Per: topology.QuotaPer(l.Per), Audit: p.Audit,
			From: resolveCallers(l.From, domainOf), To: l.To, Issuers: p.Issuers,
			Limit: quota.Limit{
				Name: l.Name, Rate: float64(l.Requests) / l.Window.Seconds(), Burst: int(l.Burst), Window: l.Window, Shared: l.Shared,
				Replicas: min(replicas, quota.MaxReplicas),
			},
		}
		out = append(out, q)
	}
	return out
}

// shared returns the limits that copies share, and by receiver which of them it enforces.
func (p *policing) shared() (limits map[string]quota.Limit, enforcers map[string]map[string]struct{}) {
	limits, enforcers = make(map[string]quota.Limit), make(map[string]map[string]struct{})
	for receiver, policies := range p.receivers {
		for i := range policies {
			for _, q := range p.limits[i] {
				if !q.GetShared() {
					continue
				}
				limits[q.GetName()] = quota.Limit{
					Name: q.GetName(), Rate: q.GetRate(), Burst: int(q.GetBurst()), Shared: true, Replicas: int(q.GetReplicas()),
					Window: time.Duration(q.GetWindowMillis()) * time.Millisecond,
				}
				if enforcers[receiver] == nil {
					enforcers[receiver] = make(map[string]struct{})
				}
				enforcers[receiver][q.GetName()] = struct{}{}
			}
		}
	}
	return limits, enforcers
}

// leases divides shared quotas among those that enforce them. It is in memory alone: a control that starts anew gives no lease before those
// of its predecessor have ended.
type leases struct {
	directory *directory
	divider   *quota.Divider
	now       func() time.Time
	enforcers atomic.Pointer[map[string]map[string]struct{}] // by receiver: the names of quotas

	mu    sync.Mutex
	asked map[string]time.Time // guarded by mu; by receiver
}

// leasePause is how long a program has to wait before it is answered again. It asks once a second.
const leasePause = quota.DefaultTTL / 12

func newLeases(d *directory, now func() time.Time) *leases {
	return &leases{directory: d, divider: quota.NewDivider(0, now()), now: now}
}

// set says which quotas there are, and who enforces them.
func (l *leases) set(p *policing) error {
	limits, enforcers := p.shared()
	l.enforcers.Store(&enforcers)
	l.mu.Lock()
	maps.DeleteFunc(l.asked, func(receiver string, _ time.Time) bool { return enforcers[receiver] == nil })
	l.mu.Unlock()
	return l.divider.Configure(limits, l.now())
}

// lease answers one program. It hears of quotas alone that are known here, and that it enforces itself.
func (l *leases) lease(id spiffeid.ID, receiver string, demands configstream.Demands) (configstream.Shares, time.Duration) {
	enforcers := l.enforcers.Load()
	if enforcers == nil {
		return nil, 0
	}
	own := (*enforcers)[receiver]
	if len(own) == 0 {
		return nil, 0
	}
	if who, err := l.directory.identity(cutProgram(receiver)); err != nil || who != id {
		return nil, 0
	}
	now := l.now()
	if !l.may(receiver, now) {
		return nil, 0
	}
	out := make(configstream.Shares)
	var least time.Duration
	for name, asked := range demands {
		if _, ok := own[name]; !ok {
			continue
		}
		if shares, ttl, ok := l.divider.Lease(name, receiver, asked, now); ok {
			out[name], least = shares, ttl
		}
	}
	return out, least
}

// may tells whether a program may ask again. There are as many to remember as there are enforcers.
func (l *leases) may(receiver string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.asked[receiver]; ok && now.Sub(last) < leasePause {
		return false
	}
	if l.asked == nil {
		l.asked = make(map[string]time.Time)
	}
	l.asked[receiver] = now
	return true
}
