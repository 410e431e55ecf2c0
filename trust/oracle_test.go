package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"time"
)

// A second verifier, to hold the first to: written from RFC 5280 (6.1) and X509-SVID, naive, and slow. It calls neither the verifier nor
// crypto/x509's, checks signatures itself, and reads the extensions itself. Of crypto/x509 it has the outer parts of a certificate only.
//
// Where it follows crypto/x509 and not the letter of RFC 5280, it says so; in TestPKITS are the vectors.

// oracleBundle is what the oracle knows of a trust domain.
type oracleBundle struct {
	roots   []*x509.Certificate
	revoked map[[32]byte]struct{} // SHA-256 of SubjectPublicKeyInfo
	over    map[string]time.Time  // IDs: what begins at that time or before; zero: everything
}

// oracleResult is what the oracle says of a chain.
type oracleResult struct {
	svid    bool      // the leaf may be an SVID at all
	known   bool      // there is a bundle of its domain
	passes  bool      // all is well
	timely  bool      // all would be well at some other time, but for what is revoked
	unburnt bool      // all would be well if nothing were revoked
	id      string    // with svid
	until   time.Time // with passes
}

func oracle(bundles map[string]oracleBundle, chain []*x509.Certificate, now time.Time) oracleResult {
	var r oracleResult
	if len(chain) == 0 {
		return r
	}
	id, ok := oracleLeaf(chain[0])
	if !ok {
		return r
	}
	r.svid, r.id = true, id
	domain, _, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	bundle, ok := bundles[domain]
	r.known = ok
	if !ok || len(chain) > 8 {
		return r
	}
	for _, path := range oraclePaths(chain[:1], chain[1:], bundle.roots) {
		if !oraclePath(path, domain) {
			continue
		}
		r.timely = true
		end := path[0].NotAfter
		valid, burnt := true, false
		if until, is := bundle.over[id]; is && (until.IsZero() || !path[0].NotBefore.After(until)) {
			burnt = true
		}
		for _, c := range path {
			valid = valid && !now.Before(c.NotBefore) && !now.After(c.NotAfter)
			if _, is := bundle.revoked[sha256.Sum256(c.RawSubjectPublicKeyInfo)]; is {
				burnt = true
			}
			if c.NotAfter.Before(end) {
				end = c.NotAfter
			}
		}
		r.unburnt = r.unburnt || valid
		if valid && !burnt {
			r.passes = true
			if end.After(r.until) {
				r.until = end
			}
		}
	}
	return r
}

// oraclePaths returns every path from path's end to a root: any certificate whose subject is the issuer's name and whose key made the
// signature continues it. A leaf that is itself a root has no authority above it.
func oraclePaths(path, others, roots []*x509.Certificate) [][]*x509.Certificate {
	last := path[len(path)-1]
	if len(path) == 1 && slices.ContainsFunc(roots, last.Equal) {
		return nil
	}
	var out [][]*x509.Certificate
	for _, c := range roots {
		if oracleSigned(last, c) {
			out = append(out, append(slices.Clone(path), c))
		}
	}
	for _, c := range others {
		if !slices.ContainsFunc(path, c.Equal) && oracleSigned(last, c) {
			out = append(out, oraclePaths(append(slices.Clone(path), c), others, roots)...)
		}
	}
	return out
}

// oracleSigned: 6.1.3 (a) (1) and (4). Names are compared byte by byte.
func oracleSigned(c, by *x509.Certificate) bool {
	key, ok := by.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() || !bytes.Equal(c.RawIssuer, by.RawSubject) {
		return false
	}
	digest := sha256.Sum256(c.RawTBSCertificate)
	return ecdsa.VerifyASN1(key, digest[:], c.Signature)
}

// oraclePath: 6.1.3 to 6.1.5, but for time and revocation. The anchor is held to what holds for the CAs below it, as in crypto/x509.
func oraclePath(path []*x509.Certificate, domain string) bool {
	usages := []string{ekuServer, ekuClient}
	for i, c := range path {
		e, ok := oracleExtensions(c)
		if !ok {
			return false
		}
		if i > 0 {
			below := i - 1                                                  // CAs between this one and the leaf; self-issued ones count too
			if !e.ca || e.keyUsage != 0 && e.keyUsage&usageCertSign == 0 || // 6.1.4 (k) and (n)
				e.pathLen >= 0 && below > e.pathLen { // 6.1.4 (m)
				return false
			}
			for _, u := range e.uris { // X509-SVID, 3: a CA's ID is that of its trust domain
				if of, ok := oracleID(u, true); !ok || of != domain {
					return false
				}
			}
		}
		for _, lower := range path[:i] { // 6.1.3 (b) and (c)
			if !e.permits(lower) {
				return false
			}
		}
		if len(e.eku) > 0 && !slices.Contains(e.eku, ekuAny) { // as crypto/x509: what all certificates of the path allow
			usages = slices.DeleteFunc(usages, func(u string) bool { return !slices.Contains(e.eku, u) })
		}
	}
	return len(usages) > 0
}

// permits: 4.2.1.10, of URIs alone. As crypto/x509 and against RFC 5280, a name permits what is below it too: the exact domain is known
// from the leaf's ID and the roots that it is verified with.
func (e *oracleExtension) permits(c *x509.Certificate) bool {
	if len(e.permitted)+len(e.excluded) == 0 {
		return true
	}
	lower, ok := oracleExtensions(c)
	if !ok {
		return false
	}
	within := func(host string) func(string) bool {
		host = strings.ToLower(host)
		return func(constraint string) bool {
			constraint = strings.ToLower(constraint)
			return host == constraint || strings.HasSuffix(host, "."+strings.TrimPrefix(constraint, "."))
		}
	}
	for _, u := range lower.uris {
		_, rest, _ := strings.Cut(u, "://")
		host, _, _ := strings.Cut(rest, "/")
		_, host, _ = cutLast(host, "@")
		host, _, _ = strings.Cut(host, ":")
		if len(e.permitted) > 0 && !slices.ContainsFunc(e.permitted, within(host)) || slices.ContainsFunc(e.excluded, within(host)) {
			return false
		}
	}
	return true
}

// cutLast returns what is after the last sep; all of s when there is none.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// oracleLeaf: X509-SVID, 2, 4 and 5.2.
func oracleLeaf(c *x509.Certificate) (id string, ok bool) {
	e, ok := oracleRead(c)
	if !ok || len(e.uris) != 1 || e.ca || e.keyUsage&(usageCertSign|usageCRLSign) != 0 || e.keyUsage&usageSignature == 0 {
		return "", false
	}
	if len(e.eku) > 0 && !slices.Contains(e.eku, ekuAny) && (!slices.Contains(e.eku, ekuServer) || !slices.Contains(e.eku, ekuClient)) {
		return "", false
	}
	if _, ok := oracleID(e.uris[0], false); !ok {
		return "", false
	}
	return e.uris[0], true
}

// oracleID reads a SPIFFE ID (SPIFFE-ID, 2): its trust domain. A CA's may have no path, and a CA that has one is left in peace.
func oracleID(uri string, ca bool) (domain string, ok bool) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if ca && !ok { // a scheme in upper case is the same URI; in a leaf it is not the normal form
		rest, ok = cutPrefixFold(uri, "spiffe://")
	}
	if !ok || len(uri) > 2048 {
		return "", false
	}
	domain, path, hasPath := strings.Cut(rest, "/")
	if domain == "" || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" || !hasPath && !ca {
		return "", false
	}
	if !hasPath {
		return domain, true
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." ||
			strings.Trim(segment, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != "" {
			return "", false
		}
	}
	return domain, true
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return s[len(prefix):], true
}

// Object identifiers, in dots.
const (
	oidKeyUsage    = "2.5.29.15"
	oidSAN         = "2.5.29.17"
	oidBasic       = "2.5.29.19"
	oidConstraints = "2.5.29.30"
	oidEKU         = "2.5.29.37"
	ekuAny         = "2.5.29.37.0"
	ekuServer      = "1.3.6.1.5.5.7.3.1"
	ekuClient      = "1.3.6.1.5.5.7.3.2"
)

// Bits of the key usage, by their number in RFC 5280 (4.2.1.3).
const (
	usageSignature = 1 << 0
	usageCertSign  = 1 << 5
	usageCRLSign   = 1 << 6
)

// oracleExtension is what the extensions of a certificate say.
type oracleExtension struct {
	ca                  bool
	pathLen             int // -1: no limit
	keyUsage            int // 0: not said
	eku, uris           []string
	permitted, excluded []string
	unknown             bool // a critical extension that is not understood
}

// oracleExtensions reads them, and refuses what is critical and not understood (6.1.4 (o), 6.1.5 (f)).
func oracleExtensions(c *x509.Certificate) (e oracleExtension, ok bool) {
	e, ok = oracleRead(c)
	return e, ok && !e.unknown
}

func oracleRead(c *x509.Certificate) (e oracleExtension, ok bool) {
	e.pathLen = -1
	for _, x := range c.Extensions {
		switch x.Id.String() {
		case oidKeyUsage:
			var bits asn1.BitString
			ok = oracleASN1(x, &bits)
			for i := range 9 {
				e.keyUsage |= bits.At(i) << i
			}
		case oidSAN:
			var names []asn1.RawValue
			ok = oracleASN1(x, &names)
			for _, n := range names {
				if n.Class == asn1.ClassContextSpecific && n.Tag == 6 {
					e.uris = append(e.uris, string(n.Bytes))
				}
			}
		case oidBasic:
			basic := struct {
				CA      bool `asn1:"optional"`
				PathLen int  `asn1:"optional,default:-1"`
			}{PathLen: -1}
			ok = oracleASN1(x, &basic)
			e.ca, e.pathLen = basic.CA, basic.PathLen
		case oidConstraints:
			var trees struct {
				Permitted []asn1.RawValue `asn1:"optional,tag:0"`
				Excluded  []asn1.RawValue `asn1:"optional,tag:1"`
			}
			ok = oracleASN1(x, &trees)
			e.permitted, e.excluded = oracleSubtrees(trees.Permitted), oracleSubtrees(trees.Excluded)
		case oidEKU:
			var oids []asn1.ObjectIdentifier
			ok = oracleASN1(x, &oids)
			for _, o := range oids {
				e.eku = append(e.eku, o.String())
			}
		default:
			ok = true
			e.unknown = e.unknown || x.Critical
		}
		if !ok {
			return e, false
		}
	}
	return e, true
}

// oracleSubtrees returns the URI names of GeneralSubtrees.
func oracleSubtrees(trees []asn1.RawValue) (uris []string) {
	for _, t := range trees {
		var name asn1.RawValue
		if _, err := asn1.Unmarshal(t.Bytes, &name); err == nil && name.Class == asn1.ClassContextSpecific && name.Tag == 6 {
			uris = append(uris, string(name.Bytes))
		}
	}
	return uris
}

func oracleASN1(x pkix.Extension, into any) bool {
	rest, err := asn1.Unmarshal(x.Value, into)
	return err == nil && len(rest) == 0
}
