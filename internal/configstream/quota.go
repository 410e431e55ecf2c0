package configstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// MaxQuotas is how many quotas one service may have for one receiver.
const MaxQuotas = 256

// What one request for leases may hold, and its answer: each quota with all that quota.Limiter asks for, and no more than one message.
const (
	maxDemands   = 20_000
	maxLeaseName = 700 // namespace, name and limit
)

// EncodeQuota makes the message of a quota.
func EncodeQuota(q *topology.Quota) *configv1.Quota {
	return &configv1.Quota{
		Name: q.Name, Per: string(q.Per), Rate: q.Limit.Rate, Burst: count(q.Limit.Burst), Shared: q.Limit.Shared, Audit: q.Audit,
		From: encodeSources(q.From), To: encodeOperations(q.To), Issuers: encodeIssuers(q.Issuers),
		WindowMillis: count(int(q.Limit.Window / time.Millisecond)), Replicas: count(q.Limit.Replicas),
	}
}

func decodeQuotas(in []*configv1.Quota) ([]topology.Quota, error) {
	if err := atMost("quotas", len(in), MaxQuotas); err != nil {
		return nil, err
	}
	var out []topology.Quota
	for _, b := range in {
		q, err := decodeQuota(b)
		if err != nil {
			return nil, fmt.Errorf("quota %q: %w", clip(b.GetName()), err)
		}
		out = append(out, q)
	}
	return out, nil
}

func decodeQuota(b *configv1.Quota) (q topology.Quota, err error) {
	q = topology.Quota{Name: b.GetName(), Per: topology.QuotaPer(b.GetPer()), Audit: b.GetAudit()}
	if err = cmp.Or(known(b.ProtoReflect()), checkTexts(q.Name)); err != nil {
		return q, err
	}
	switch q.Per {
	case topology.PerCaller, topology.PerEndUser, topology.PerService:
	default:
		return q, fmt.Errorf("per %q", clip(b.GetPer()))
	}
	if q.From, err = decodeSources(b.GetFrom()); err != nil {
		return q, err
	}
	if q.To, err = decodeOperations(b.GetTo()); err != nil {
		return q, err
	}
	if q.Issuers, err = decodeIssuers(b.GetIssuers()); err != nil {
		return q, err
	}
	burst, err := decodeCount("burst", b.GetBurst())
	if err != nil {
		return q, err
	}
	replicas, err := decodeCount("replicas", b.GetReplicas())
	if err != nil {
		return q, err
	}
	q.Limit = quota.Limit{
		Name: nameOfLimit(q.Name), Rate: b.GetRate(), Burst: burst, Shared: b.GetShared(), Replicas: replicas,
		Window: time.Duration(b.GetWindowMillis()) * time.Millisecond,
	}
	if _, err = quota.NewLimiter(q.Limit); err != nil {
		return q, err
	}
	if q.Name == "" {
		return q, errors.New("no name")
	}
	_, err = access.CompileFilter(q.From, q.To)
	return q, err
}

// nameOfLimit is by what callers hear of a quota: the last part of its name. Whose policy it is of is no matter of theirs.
func nameOfLimit(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[i+1:]
		}
	}
	return name
}

// Leases is what a program asks for, and hears: by the name of the quota.
type (
	// Demands are what was asked of each shared quota; one without any says that the copy is there.
	Demands map[string][]quota.Demand
	// Shares are what the copy may let through. A quota that is not in it has no answer yet.
	Shares map[string][]quota.Share
)

// Lease answers a program that asks for its part of shared quotas. gRPC calls it.
func (s *Server) Lease(ctx context.Context, r *configv1.LeaseRequest) (*configv1.LeaseResponse, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	id, err := s.cfg.Peer(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if s.cfg.Lease == nil {
		return nil, status.Error(codes.Unimplemented, "no quotas are divided here")
	}
	if len(r.GetDemands()) > maxDemands {
		return nil, status.Errorf(codes.InvalidArgument, "%d demands: want at most %d", len(r.GetDemands()), maxDemands)
	}
	demands := make(Demands)
	for _, d := range r.GetDemands() {
		if len(d.GetQuota()) > maxLeaseName || len(d.GetBucket()) > quota.MaxBucketName {
			return nil, status.Error(codes.InvalidArgument, "a name is too long")
		}
		if d.GetBucket() == "" {
			demands[d.GetQuota()] = append(demands[d.GetQuota()], []quota.Demand{}...)
			continue
		}
		demands[d.GetQuota()] = append(demands[d.GetQuota()], quota.Demand{Bucket: d.GetBucket(), Rate: d.GetRate()})
	}
	shares, ttl := s.cfg.Lease(id, r.GetReceiver(), demands)
	out := &configv1.LeaseResponse{TtlMillis: count(int(ttl / time.Millisecond))}
	for name, of := range shares {
		out.Shares = append(out.Shares, &configv1.Share{Quota: name})
		for _, share := range of {
			out.Shares = append(out.Shares, &configv1.Share{Quota: name, Bucket: share.Bucket, Rate: share.Rate})
		}
	}
	return out, nil
}

// Lease asks control for this program's part of shared quotas. While control is away the error is ErrUnavailable.
func (c *Client) Lease(ctx context.Context, demands Demands) (Shares, time.Duration, error) {
	conn := c.conn.Load()
	if conn == nil {
		return nil, 0, fmt.Errorf("configstream: leases: %w", ErrUnavailable)
	}
	receiver, err := ReceiverOf(c.cfg.Hello)
	if err != nil {
		return nil, 0, err
	}
	ask := &configv1.LeaseRequest{Receiver: receiver}
	for name, of := range demands {
		ask.Demands = append(ask.Demands, &configv1.Demand{Quota: name})
		for _, d := range of {
			ask.Demands = append(ask.Demands, &configv1.Demand{Quota: name, Bucket: d.Bucket, Rate: d.Rate})
		}
	}
	answer, err := configv1.NewConfigClient(*conn).Lease(ctx, ask)
	if err != nil {
		return nil, 0, fmt.Errorf("configstream: leases: %w: %w", ErrUnavailable, err)
	}
	out := make(Shares)
	for _, s := range answer.GetShares() {
		if _, asked := demands[s.GetQuota()]; !asked {
			continue
		}
		if s.GetBucket() == "" {
			out[s.GetQuota()] = append(out[s.GetQuota()], []quota.Share{}...)
			continue
		}
		out[s.GetQuota()] = append(out[s.GetQuota()], quota.Share{Bucket: s.GetBucket(), Rate: s.GetRate()})
	}
	return out, time.Duration(answer.GetTtlMillis()) * time.Millisecond, nil
}
