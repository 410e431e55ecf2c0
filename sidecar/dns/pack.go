package dns

import "golang.org/x/net/dns/dnsmessage"

// pack encodes r as the answer to a query with that head.
func (r *reply) pack(query dnsmessage.Header, edns bool, limit int) ([]byte, error) {
	b := dnsmessage.NewBuilder(make([]byte, 0, min(limit, minUDP)), dnsmessage.Header{
		ID:               query.ID,
		Response:         true,
		OpCode:           query.OpCode,
		Authoritative:    r.zone != "",
		Truncated:        query.Truncated,
		RecursionDesired: query.RecursionDesired,
		RCode:            r.code,
	})
	b.EnableCompression()
	if r.question.Type != 0 {
		if err := b.StartQuestions(); err != nil {
			return nil, err
		}
		if err := b.Question(r.question); err != nil {
			return nil, err
		}
	}
	if err := b.StartAnswers(); err != nil {
		return nil, err
	}
	for _, rec := range r.answers {
		if err := put(&b, rec); err != nil {
			return nil, err
		}
	}
	if err := b.StartAuthorities(); err != nil {
		return nil, err
	}
	if r.zone != "" && len(r.answers) == 0 && !query.Truncated {
		name, err := dnsmessage.NewName(r.zone + ".")
		if err != nil {
			return nil, err
		}
		if err := put(&b, record{name, soa(r.zone)}); err != nil {
			return nil, err
		}
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	for _, rec := range r.extra {
		if err := put(&b, rec); err != nil {
			return nil, err
		}
	}
	if edns {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(maxUDP, 0, false); err != nil {
			return nil, err
		}
		if err := b.OPTResource(h, dnsmessage.OPTResource{}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

func put(b *dnsmessage.Builder, rec record) error {
	h := dnsmessage.ResourceHeader{Name: rec.name, Class: dnsmessage.ClassINET, TTL: ttl}
	switch body := rec.body.(type) {
	case *dnsmessage.AResource:
		return b.AResource(h, *body)
	case *dnsmessage.AAAAResource:
		return b.AAAAResource(h, *body)
	case *dnsmessage.SRVResource:
		return b.SRVResource(h, *body)
	case *dnsmessage.TXTResource:
		return b.TXTResource(h, *body)
	case *dnsmessage.SOAResource:
		return b.SOAResource(h, *body)
	default:
		return nil
	}
}
