package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

var errQuota = errors.New("above a quota")

// allotment is a quota of one service.
type allotment struct {
	topology.Quota
	key     string
	filter  *access.Filter
	limiter *quota.Limiter
	users   []int // places of its issuers among the guard's
}

// allot makes the quotas of a service. A limit that was in force before goes on with what was used of it.
func (k *keeper) allot(g *guard, node bool) {
	g.issuers = g.set.Issuers()
	for _, q := range g.inbound.Quotas {
		a := &allotment{Quota: q, key: q.Name}
		if node && !q.Limit.Shared { // several applications are behind it
			a.key += "@" + g.inbound.Name.String()
		}
		var err error
		if a.filter, err = access.CompileFilter(q.From, q.To); err == nil {
			a.limiter, err = k.limiter(a.key, q.Limit)
		}
		if err != nil {
			g.rules = &rules{err: fmt.Errorf("quota %s: %w", q.Name, err)} // what can't be counted is refused
			return
		}
		for _, issuer := range q.Issuers {
			a.users = append(a.users, placeOf(&g.issuers, issuer))
		}
		g.quotas = append(g.quotas, a)
	}
}

// placeOf returns where an issuer is in a list, to which it is added if it is not there, whatever policies call it.
func placeOf(list *[]access.Issuer, issuer access.Issuer) int {
	issuer.Name = ""
	same := func(o access.Issuer) bool {
		return o.Issuer == issuer.Issuer && o.JWKS == issuer.JWKS && o.JWKSFile == issuer.JWKSFile && o.JWKSURL == issuer.JWKSURL && o.Header == issuer.Header &&
			slices.Equal(slices.Sorted(slices.Values(o.Audiences)), slices.Sorted(slices.Values(issuer.Audiences)))
	}
	i := slices.IndexFunc(*list, same)
	if i < 0 {
		i = len(*list)
		*list = append(*list, issuer)
	}
	return i
}

func (k *keeper) limiter(key string, limit quota.Limit) (*quota.Limiter, error) {
	if l := k.limiters[key]; l != nil {
		return l, l.Update(limit, k.now())
	}
	l, err := quota.NewLimiter(limit)
	if err == nil {
		if k.limiters == nil {
			k.limiters = make(map[string]*quota.Limiter)
		}
		k.limiters[key] = l // the next service of this configuration shares it
	}
	return l, err
}

// whose returns whose requests a request is counted with.
func (a *allotment) whose(q *access.Request) quota.Key {
	switch a.Per {
	case topology.PerCaller:
		return quota.Key{A: q.Caller.String()}
	case topology.PerEndUser:
		for _, i := range a.users {
			if i < len(q.Tokens) && q.Tokens[i].State == access.TokenValid {
				return quota.Key{A: q.Tokens[i].User.Issuer, B: q.Tokens[i].User.Subject}
			}
		}
	case topology.PerService:
	}
	return quota.Key{} // all together, and all that have no valid token
}

// spend counts a request that policies let through, and says why it must wait; nil when it need not. headers is what callers are told. One
// that has to wait counts with no limit: who is above his own must not use up that of all.
func (in *Inbound) spend(ctx context.Context, g *guard, q *access.Request, a *arrival) (headers http.Header, refused *Failure) {
	var policies, state []byte
	var over *allotment
	var least quota.Decision
	var taken []*allotment
	for _, allotment := range g.quotas {
		if !allotment.filter.Matches(q) {
			continue
		}
		d := allotment.limiter.Take(allotment.whose(q), in.now())
		if d.Allowed {
			taken = append(taken, allotment)
		}
		word := decisionAllow
		switch {
		case d.Allowed:
		case allotment.Audit:
			word = decisionAudit
		default:
			word = decisionDeny
		}
		in.metrics.quotaDecision(allotment.Name, word)
		if !d.Allowed {
			in.refusals.over(ctx, a, allotment, word)
		}
		if allotment.Audit {
			continue
		}
		limit := allotment.limiter.Limit()
		limit.Name = allotment.Limit.Name
		policies, state = limit.AppendPolicy(policies), limit.AppendState(state, d)
		if !d.Allowed && (over == nil || d.Reset > least.Reset) {
			over, least = allotment, d
		}
	}
	if policies == nil {
		return nil, nil
	}
	headers = http.Header{quotaPolicyHeader: {string(policies)}, quotaStateHeader: {string(state)}}
	if over == nil {
		return headers, nil
	}
	for _, allotment := range taken {
		allotment.limiter.GiveBack(allotment.whose(q), in.now())
	}
	headers.Set(quota.RetryAfterHeader, least.RetryAfter())
	return headers, &Failure{
		Status: http.StatusTooManyRequests, Code: CodeTooMany, Text: "too many requests: wait as long as Retry-After says", Header: headers,
		Err: fmt.Errorf("%w: %s", errQuota, over.Name),
	}
}

// As net/http has them.
var (
	quotaPolicyHeader = http.CanonicalHeaderKey(quota.PolicyHeader)
	quotaStateHeader  = http.CanonicalHeaderKey(quota.StateHeader)
)

// over tells the log of a request above a quota, as tell does.
func (r *refusals) over(ctx context.Context, a *arrival, q *allotment, decision string) {
	if untold, ok := r.due(a.peer.ID.String(), q.Name, "", decision); ok {
		r.log.LogAttrs(ctx, slog.LevelWarn, "quota decided",
			slog.String("decision", decision),
			slog.String("caller", a.peer.ID.String()), slog.String("service", a.service.String()), slog.Int("port", int(a.port)),
			slog.String("quota", q.Name), slog.Int("not_told", untold))
	}
}

// leaseEvery is how often control is asked for shares of quotas: a third of a lease, so that one may be lost.
const leaseEvery = time.Second

// lease asks control for shares of quotas, for as long as there are shared ones. Requests never wait for it: without an answer, each copy has
// an even share.
func (in *Inbound) lease(ctx context.Context, ask func(context.Context, configstream.Demands) (configstream.Shares, time.Duration, error)) {
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		shared := in.keeper.present().shared()
		if len(shared) == 0 {
			continue
		}
		asked := in.now()
		demands := make(configstream.Demands, len(shared))
		for name, l := range shared {
			demands[name] = l.Demands(asked)
		}
		bounded, cancel := context.WithTimeout(ctx, leaseEvery)
		shares, ttl, err := ask(bounded, demands)
		cancel()
		if err != nil {
			in.log.DebugContext(ctx, "no shares of quotas", "error", err)
			continue
		}
		for name, of := range shares {
			shared[name].Apply(of, ttl, asked, in.now())
		}
	}
}

// shared returns the limits that copies share, by the names of the quotas.
func (g *guards) shared() map[string]*quota.Limiter {
	if g == nil {
		return nil
	}
	var out map[string]*quota.Limiter
	for _, guard := range g.by {
		for _, a := range guard.quotas {
			if a.Limit.Shared {
				if out == nil {
					out = make(map[string]*quota.Limiter)
				}
				out[a.Name] = a.limiter
			}
		}
	}
	return out
}
