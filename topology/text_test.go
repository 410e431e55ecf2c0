package topology_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/topology"
)

// parseSnapshot reads the compact form of testdata: one thing a line, a word for what it is, its name, then key=value; what
// belongs to a service is indented below it.
//
//	self eu region=europe zone=eu-1 workload=shop/web
//	cluster us region=america link=up rtt=80ms
//	service checkout.shop 80/http imported exported
//	  endpoint checkout-0 10.0.0.1:15008 ports=80 zone=eu-1 notready capacity=3 labels=tier:prod
//	  remote us ports=80 ready=3 total=5 stale
//	  policy shop/checkout spill=70 after=30s ramp=60s
//	  tier home cluster=Same weights=eu:70,us:30
//	  never labels=jurisdiction:other
func parseSnapshot(t *testing.T, text string) *topology.Snapshot {
	t.Helper()
	var spec topology.SnapshotSpec
	var service *topology.Service
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		f := newFields(t, line, words[1:])
		switch words[0] {
		case "self":
			spec.Self = topology.Self{
				Cluster:  cluster(t, f.name(0)),
				Locality: topology.Locality{Region: f.take("region"), Zone: f.take("zone")},
			}
			spec.Self.Namespace, spec.Self.Workload, _ = strings.Cut(f.take("workload"), "/")
		case "cluster":
			spec.Clusters = append(spec.Clusters, &topology.Cluster{
				Name:   cluster(t, f.name(0)),
				Region: f.take("region"),
				Link:   topology.LinkState(f.take("link")),
				RTT:    f.duration("rtt"),
			})
		case "service":
			service = &topology.Service{Name: name(t, f.name(0)), Imported: f.flag("imported"), Exported: f.flag("exported")}
			for _, p := range f.rest(1) {
				number, protocol, _ := strings.Cut(p, "/")
				service.Ports = append(service.Ports, topology.Port{Number: portNumber(t, number), Protocol: topology.Protocol(protocol)})
			}
			spec.Services = append(spec.Services, service)
		case "endpoint":
			service.Endpoints = append(service.Endpoints, topology.Endpoint{
				ID:       f.name(0),
				Address:  netip.MustParseAddrPort(f.name(1)),
				Locality: topology.Locality{Region: f.take("region"), Zone: f.take("zone")},
				Labels:   f.labels("labels"),
				Ports:    f.ports("ports"),
				Ready:    !f.flag("notready"),
				Total:    f.number("total", 0),
				Capacity: f.number("capacity", 1),
			})
		case "remote":
			service.Remotes = append(service.Remotes, topology.Remote{
				Cluster: cluster(t, f.name(0)),
				Ports:   f.ports("ports"),
				Ready:   f.number("ready", 0),
				Total:   f.number("total", 0),
				Labels:  f.labels("labels"),
				Stale:   f.flag("stale"),
			})
		case "policy":
			service.Policy = &topology.Policy{
				Name: f.name(0), Spill: topology.Spill{BelowHealthyPercent: f.number("spill", 0)},
				Failback: topology.Failback{After: f.duration("after"), Ramp: f.duration("ramp")},
			}
		case "tier":
			tier := topology.Tier{Name: f.name(0), Match: f.selector()}
			for c, w := range f.labels("weights") {
				if tier.Weights == nil {
					tier.Weights = make(map[string]uint32)
				}
				tier.Weights[c] = uint32(portNumber(t, w))
			}
			service.Policy.Tiers = append(service.Policy.Tiers, tier)
		case "never":
			service.Policy.Never = append(service.Policy.Never, f.selector())
		default:
			t.Fatalf("line %q: unknown word %s", line, words[0])
		}
		f.done()
	}
	return topology.NewSnapshot(spec)
}

// fields are the words of a line: positional ones, flags, key=value.
type fields struct {
	t      *testing.T
	line   string
	plain  []string
	values map[string]string
	flags  map[string]bool
	read   int
}

func newFields(t *testing.T, line string, words []string) *fields {
	t.Helper()
	f := &fields{t: t, line: line, values: map[string]string{}, flags: map[string]bool{}}
	for _, w := range words {
		switch key, value, ok := strings.Cut(w, "="); {
		case ok:
			f.values[key] = value
		case w == "imported" || w == "exported" || w == "notready" || w == "stale":
			f.flags[w] = true
		default:
			f.plain = append(f.plain, w)
		}
	}
	return f
}

func (f *fields) name(i int) string {
	f.t.Helper()
	if i >= len(f.plain) {
		f.t.Fatalf("line %q: want a name", f.line)
	}
	f.read = max(f.read, i+1)
	return f.plain[i]
}

func (f *fields) rest(i int) []string {
	f.read = len(f.plain)
	return f.plain[i:]
}

func (f *fields) take(key string) string {
	v := f.values[key]
	delete(f.values, key)
	return v
}

func (f *fields) flag(key string) bool {
	v := f.flags[key]
	delete(f.flags, key)
	return v
}

func (f *fields) duration(key string) time.Duration {
	v := f.take(key)
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		f.t.Fatalf("line %q: %v", f.line, err)
	}
	return d
}

func (f *fields) number(key string, none int) int {
	v := f.take(key)
	if v == "" {
		return none
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		f.t.Fatalf("line %q: %v", f.line, err)
	}
	return n
}

func (f *fields) ports(key string) []uint16 {
	var out []uint16
	for _, p := range strings.FieldsFunc(f.take(key), func(r rune) bool { return r == ',' }) {
		out = append(out, portNumber(f.t, p))
	}
	return out
}

func (f *fields) labels(key string) map[string]string {
	v := f.take(key)
	if v == "" {
		return nil
	}
	out := make(map[string]string)
	for pair := range strings.SplitSeq(v, ",") {
		k, v, _ := strings.Cut(pair, ":")
		out[k] = v
	}
	return out
}

func (f *fields) selector() topology.Selector {
	return topology.Selector{Cluster: f.take("cluster"), Region: f.take("region"), Zone: f.take("zone"), Labels: f.labels("labels")}
}

func (f *fields) done() {
	f.t.Helper()
	if len(f.values)+len(f.flags) > 0 || f.read != len(f.plain) {
		f.t.Fatalf("line %q: not understood: %v %v %v", f.line, f.values, f.flags, f.plain[f.read:])
	}
}

// parseQuery reads "ask checkout.shop 80" with, optionally, "cluster" for the cluster's own name, and lines "eject TARGET EVIDENCE",
// where TARGET is cluster or cluster/endpoint; and
// "level TIER[/CLUSTER] PART WHY", where TIER is a number, a name, or "-" for a drain.
func parseQuery(t *testing.T, text string) (q topology.Query, load topology.Load) {
	t.Helper()
	load = topology.Load{Suspected: make(map[topology.Target]string), Levels: make(map[topology.LevelKey]topology.Level)}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "ask" && len(words) >= 3:
			q = topology.Query{Service: name(t, words[1]), Port: portNumber(t, words[2])}
			if len(words) > 3 {
				if err := q.Scope.UnmarshalText([]byte(words[3])); err != nil {
					t.Fatal(err)
				}
			}
		case words[0] == "eject" && len(words) >= 3:
			c, endpoint, _ := strings.Cut(words[1], "/")
			load.Suspected[topology.Target{Service: q.Service, Port: q.Port, Cluster: cluster(t, c), Endpoint: endpoint}] = strings.Join(words[2:], " ")
		case words[0] == "level" && len(words) >= 4:
			tier, c, _ := strings.Cut(words[1], "/")
			k := topology.LevelKey{Tier: topology.TierID(strings.TrimPrefix(tier, "-"))}
			if c != "" {
				k.Cluster = cluster(t, c)
			}
			part, err := strconv.ParseFloat(words[2], 64)
			if err != nil {
				t.Fatal(err)
			}
			load.Levels[k] = topology.Level{Part: part, Why: strings.Join(words[3:], " ")}
		default:
			t.Fatalf("line %q: not understood", line)
		}
	}
	return q, load
}

// formatExplanation makes a table that a person can check.
func formatExplanation(x topology.Explanation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d %s %s", x.Service, x.Port, x.Protocol, x.Scope)
	if x.Policy != "" {
		fmt.Fprintf(&b, " policy %s", x.Policy)
	}
	b.WriteByte('\n')
	for _, r := range x.Rows {
		target := r.Cluster.String()
		if r.Endpoint != "" {
			target += "/" + r.Endpoint
		}
		rank := "-"
		if r.Rank > 0 {
			rank = strconv.Itoa(r.Rank)
		}
		tier := r.Tier
		if tier == "" {
			tier = "-"
		}
		if r.Stale {
			target += " (stale)"
		}
		fmt.Fprintf(&b, "%-2s %-10s %-16s %5.1f%% %5.1f%%  %-11s %s\n", rank, tier, target, 100*r.Share, 100*r.Traffic, r.State, strings.Join(append([]string{r.Reason}, r.Limits...), "; "))
	}
	if x.Error != nil {
		fmt.Fprintf(&b, "%s: %s\n", x.Error.Code, x.Error.Message)
	}
	return b.String()
}

// fatalist is a testing.TB or a *rapid.T.
type fatalist interface {
	Helper()
	Fatal(args ...any)
}

func cluster(t fatalist, s string) topology.ClusterName {
	t.Helper()
	c, err := topology.ParseClusterName(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func name(t fatalist, s string) topology.ServiceName {
	t.Helper()
	n, err := topology.ParseServiceName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func portNumber(t fatalist, s string) uint16 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}
