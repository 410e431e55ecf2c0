package dns

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/topology"
)

const (
	ttl = 5 // seconds: as long as an answer may be old

	// maxUDP bounds an answer over UDP, in bytes: it fits every path unfragmented (DNS flag day 2020). Beyond the loopback, minUDP does (udpLimit).
	maxUDP = 1232
	// minUDP is what a client takes that does not say more (RFC 1035 section 4.2.1).
	minUDP = 512
	// maxQuery bounds a query, in bytes: one question, one name, and some EDNS options.
	maxQuery = 1232
	// maxQueryRecords bounds the records that a query carries behind its question (an OPT, perhaps a TSIG).
	maxQueryRecords = 4

	// srvWeight is that of each SRV record: all are alike.
	srvWeight = 100

	// schemaVersion is that of the multicluster DNS schema (KEP-1645).
	schemaVersion = "1.0.0"
)

// reply is what an answer says, before it is packed.
type reply struct {
	code     dnsmessage.RCode
	zone     string // set: the answer is ours to give
	answers  []record
	extra    []record
	question dnsmessage.Question
}

type record struct {
	name dnsmessage.Name
	body dnsmessage.ResourceBody
}

// answer returns the answer to one query, at most limit bytes (0: as UDP and the client's EDNS size say); nil when the query
// deserves none.
func (s *Server) answer(ctx context.Context, query []byte, limit int) []byte {
	if len(query) > maxQuery {
		return nil
	}
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	r := reply{}
	size, edns := minUDP, false
	question, err := single(&p)
	switch {
	case head.OpCode != 0:
		r.code = dnsmessage.RCodeNotImplemented
	case err != nil:
		r.code = dnsmessage.RCodeFormatError
	default:
		r.question = question
		size, edns, err = options(&p)
		if err != nil {
			r.code = dnsmessage.RCodeFormatError
			break
		}
		s.resolve(ctx, &r)
	}
	if limit == 0 {
		limit = min(max(size, minUDP), maxUDP)
	}
	out, err := r.pack(head, edns, limit)
	if err == nil && len(out) > limit && len(r.extra) > 0 {
		r.extra = nil // they may be asked for, too (RFC 2181 section 9)
		out, err = r.pack(head, edns, limit)
	}
	if err == nil && len(out) <= limit {
		return out
	}
	r.answers, r.extra = nil, nil
	head.Truncated = true
	if out, err = r.pack(head, edns, limit); err != nil {
		return nil
	}
	return out
}

// single returns the one question of a query.
func single(p *dnsmessage.Parser) (dnsmessage.Question, error) {
	q, err := p.Question()
	if err != nil {
		return q, err
	}
	if err := p.SkipQuestion(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return q, errors.New("more than one question")
	}
	return q, nil
}

// options returns the size of answer that the client takes, and whether it speaks EDNS.
func options(p *dnsmessage.Parser) (size int, edns bool, err error) {
	if err := p.SkipAllAnswers(); err != nil {
		return minUDP, false, err
	}
	if err := p.SkipAllAuthorities(); err != nil {
		return minUDP, false, err
	}
	for range maxQueryRecords {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return max(size, minUDP), edns, nil
		}
		if err != nil {
			return minUDP, false, err
		}
		if h.Type == dnsmessage.TypeOPT {
			if edns {
				return minUDP, false, errors.New("more than one OPT")
			}
			size, edns = int(h.Class), true
		}
		if err := p.SkipAdditional(); err != nil {
			return minUDP, false, err
		}
	}
	return minUDP, false, errors.New("too many records")
}

// resolve fills in what r's question asks for.
func (s *Server) resolve(ctx context.Context, r *reply) {
	name := strings.ToLower(strings.TrimSuffix(r.question.Name.String(), "."))
	rest, scope, ok := host.Zone(name)
	if !ok || r.question.Class != dnsmessage.ClassINET && r.question.Class != dnsmessage.ClassANY {
		r.code = dnsmessage.RCodeRefused
		return
	}
	r.zone = strings.TrimPrefix(name[len(rest):], ".")
	labels := strings.Split(rest, ".")
	last := len(labels) - 1
	switch {
	case rest == "":
		if r.question.Type == dnsmessage.TypeSOA {
			r.add(r.question.Name, soa(r.zone))
		}
	case rest == "dns-version":
		if r.question.Type == dnsmessage.TypeTXT {
			r.add(r.question.Name, &dnsmessage.TXTResource{TXT: []string{schemaVersion}})
		}
	case labels[last] != "svc":
		r.code = dnsmessage.RCodeNameError
	case last <= 1: // svc, <namespace>.svc: something may be below
	case last == 2:
		s.service(ctx, r, labels, scope)
	case last == 4 && strings.HasPrefix(labels[0], "_") && strings.HasPrefix(labels[1], "_"):
		s.port(ctx, r, labels, scope)
	case last == 3 && strings.HasPrefix(labels[0], "_"):
		s.belowService(ctx, r, labels[1:], scope)
	case last == 4 && scope == topology.ClusterSet:
		s.host(ctx, r, labels)
	default:
		// <cluster>.<service>… must not exist (KEP-1645).
		r.code = dnsmessage.RCodeNameError
	}
}

// find returns the service that labels name, if it has a name in that zone; otherwise r says that it has none.
func (s *Server) find(ctx context.Context, r *reply, labels []string, scope topology.Scope) *topology.Service {
	name, err := topology.NewServiceName(labels[1], labels[0])
	if err != nil {
		r.code = dnsmessage.RCodeNameError
		return nil
	}
	service, known := s.Lookup(ctx, name)
	switch {
	case service == nil && !known:
		r.code, r.zone = dnsmessage.RCodeServerFailure, "" // "no" is not ours to say now
		return nil
	case service == nil,
		scope == topology.ClusterSet && !service.Imported,
		scope == topology.ClusterSet && headless(service) && len(service.Hosts) == 0, // no copy is ready
		scope == topology.ClusterLocal && len(service.ClusterIPs) == 0 && len(service.Endpoints) == 0:
		r.code = dnsmessage.RCodeNameError
		return nil
	}
	return service
}

// service answers for <name>.<namespace>.svc.
func (s *Server) service(ctx context.Context, r *reply, labels []string, scope topology.Scope) {
	service := s.find(ctx, r, labels, scope)
	if service == nil {
		return
	}
	if r.question.Type == dnsmessage.TypeSRV { // of all ports: what Kubernetes' own DNS says, too
		if scope == topology.ClusterSet && headless(service) {
			r.hostSRV(service, labels, func(topology.HostPort) bool { return true })
			return
		}
		for _, p := range named(service) {
			r.srv(service, p.number, labels, scope)
		}
		return
	}
	for _, ip := range addresses(service, scope) {
		if body := address(ip); body != nil && typeOf(body) == r.question.Type {
			r.add(r.question.Name, body)
		}
	}
}

// belowService answers for _<port or protocol>.<name>.<namespace>.svc: nothing is there, but something may be below.
func (s *Server) belowService(ctx context.Context, r *reply, labels []string, scope topology.Scope) {
	_ = s.find(ctx, r, labels, scope)
}

// port answers for _<port>._<protocol>.<name>.<namespace>.svc.
func (s *Server) port(ctx context.Context, r *reply, labels []string, scope topology.Scope) {
	service := s.find(ctx, r, labels[2:], scope)
	if service == nil {
		return
	}
	if scope == topology.ClusterSet && headless(service) {
		is := func(p topology.HostPort) bool {
			return labels[0] == "_"+strings.ToLower(p.Name) && labels[1] == "_"+p.Protocol
		}
		if !r.hostSRV(service, labels[2:], is) {
			r.code = dnsmessage.RCodeNameError
		}
		return
	}
	for _, p := range named(service) {
		if labels[0] != "_"+p.name || labels[1] != "_"+p.protocol {
			continue
		}
		if r.question.Type == dnsmessage.TypeSRV {
			r.srv(service, p.number, labels[2:], scope)
		}
		return
	}
	r.code = dnsmessage.RCodeNameError
}

// headless reports whether a clusterset name leads to the copies themselves.
func headless(s *topology.Service) bool { return s.Headless && len(s.ClusterSetIPs) == 0 }

// host answers for <host>.<cluster>.<name>.<namespace>.svc: a copy of a headless service, or all that share that name.
func (s *Server) host(ctx context.Context, r *reply, labels []string) {
	service := s.find(ctx, r, labels[2:], topology.ClusterSet)
	if service == nil {
		return
	}
	known := false
	for _, g := range service.Hosts {
		if g.Cluster.String() != labels[1] {
			continue
		}
		for _, h := range g.Hosts {
			if strings.ToLower(h.Name) != labels[0] {
				continue
			}
			known = true
			for _, ip := range h.IPs {
				if body := address(ip); body != nil && typeOf(body) == r.question.Type {
					r.add(r.question.Name, body)
				}
			}
		}
	}
	if !known {
		r.code = dnsmessage.RCodeNameError
	}
}

// hostSRV adds an SRV record for each copy and each named port of those that are wanted, and where the copies are. It reports whether there
// is such a port. The port is where the copies listen, as Kubernetes' own DNS has it: whoever connects to a copy connects there.
func (r *reply) hostSRV(service *topology.Service, labels []string, wanted func(topology.HostPort) bool) (found bool) {
	type one struct {
		target string
		port   uint16
	}
	seen := make(map[one]bool) // two for TCP and UDP are the same record (RFC 2181 section 5)
	for i := range service.Hosts {
		g := &service.Hosts[i]
		below := "." + g.Cluster.String() + "." + strings.Join(labels, ".") + "." + r.zone + "."
		ports := slices.DeleteFunc(slices.Clone(g.Ports), func(p topology.HostPort) bool { return p.Name == "" || !wanted(p) })
		found = found || len(ports) > 0
		if r.question.Type != dnsmessage.TypeSRV || len(ports) == 0 {
			continue
		}
		for _, h := range g.Hosts {
			target, err := dnsmessage.NewName(strings.ToLower(h.Name) + below)
			if err != nil {
				continue // longer than a name may be
			}
			for _, p := range ports {
				if key := (one{target.String(), p.Target}); !seen[key] {
					seen[key] = true
					r.add(r.question.Name, &dnsmessage.SRVResource{Weight: srvWeight, Port: p.Target, Target: target})
				}
			}
			for _, ip := range h.IPs {
				if body := address(ip); body != nil {
					r.extra = append(r.extra, record{target, body})
				}
			}
		}
	}
	return found
}

// port is a port that has a name in DNS.
type port struct {
	name, protocol string
	number         uint16
}

// named returns the ports of a service that have a name: no other has an SRV record.
func named(s *topology.Service) []port {
	out := make([]port, 0, len(s.Ports)+len(s.OtherPorts))
	for _, p := range s.Ports {
		transport := "tcp" // whatever they speak, it is TCP underneath
		if p.Protocol == topology.UDP {
			transport = "udp"
		}
		out = append(out, port{strings.ToLower(p.Name), transport, p.Number})
	}
	for _, p := range s.OtherPorts {
		out = append(out, port{strings.ToLower(p.Name), p.Protocol, p.Number})
	}
	return slices.DeleteFunc(out, func(p port) bool { return p.name == "" })
}

// srv adds an SRV record to the service that labels name, and the addresses of that. Of two ports with one number, one for TCP and one for
// UDP, the records are the same, and a set holds each once (RFC 2181 section 5).
func (r *reply) srv(service *topology.Service, number uint16, labels []string, scope topology.Scope) {
	target, err := dnsmessage.NewName(strings.Join(labels, ".") + "." + r.zone + ".")
	if err != nil {
		r.code = dnsmessage.RCodeNameError
		return
	}
	for _, have := range r.answers {
		if have.body.(*dnsmessage.SRVResource).Port == number { // an answer to such a question has no others
			return
		}
	}
	r.add(r.question.Name, &dnsmessage.SRVResource{Weight: srvWeight, Port: number, Target: target})
	if len(r.extra) > 0 {
		return
	}
	for _, ip := range addresses(service, scope) {
		if body := address(ip); body != nil {
			r.extra = append(r.extra, record{target, body})
		}
	}
}

func addresses(s *topology.Service, scope topology.Scope) []netip.Addr {
	if scope == topology.ClusterLocal {
		return s.ClusterIPs
	}
	if !headless(s) {
		return s.ClusterSetIPs
	}
	var out []netip.Addr
	for i := range s.Hosts {
		for _, h := range s.Hosts[i].Hosts {
			out = append(out, h.IPs...)
		}
	}
	return out
}

func address(ip netip.Addr) dnsmessage.ResourceBody {
	switch ip = ip.Unmap(); {
	case ip.Is4():
		return &dnsmessage.AResource{A: ip.As4()}
	case ip.Is6():
		return &dnsmessage.AAAAResource{AAAA: ip.As16()}
	default:
		return nil
	}
}

func (r *reply) add(name dnsmessage.Name, body dnsmessage.ResourceBody) {
	r.answers = append(r.answers, record{name, body})
}

func typeOf(b dnsmessage.ResourceBody) dnsmessage.Type {
	switch b.(type) {
	case *dnsmessage.AResource:
		return dnsmessage.TypeA
	case *dnsmessage.AAAAResource:
		return dnsmessage.TypeAAAA
	case *dnsmessage.SRVResource:
		return dnsmessage.TypeSRV
	case *dnsmessage.TXTResource:
		return dnsmessage.TypeTXT
	default:
		return dnsmessage.TypeSOA
	}
}

func soa(zone string) *dnsmessage.SOAResource {
	return &dnsmessage.SOAResource{
		NS: dnsmessage.MustNewName("ns." + zone + "."), MBox: dnsmessage.MustNewName("hostmaster." + zone + "."),
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, MinTTL: ttl, // MinTTL bounds how long a "no" is kept (RFC 2308)
	}
}
