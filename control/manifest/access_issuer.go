package manifest

import (
	"encoding/json"
	"fmt"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

func (c *checker) issuers(in []meshv1alpha1.TokenIssuer) []access.Issuer {
	if !c.atMost("spec.issuers", len(in), maxIssuers) {
		return nil
	}
	var out []access.Issuer
	names := map[string]int{}
	for i := range in {
		at, s := fmt.Sprintf("spec.issuers[%d]", i), &in[i]
		c.label(at+".name", s.Name, "is missing: rules call the issuer by it")
		unique(c, names, s.Name, "spec.issuers", i, "the name "+strconv.Quote(s.Name))
		c.text(at+".issuer", s.Issuer, maxPattern)
		if len(s.Audiences) == 0 {
			c.addf(at+".audiences", "is empty: name who the tokens are for, or one for another application would do here")
		}
		if c.atMost(at+".audiences", len(s.Audiences), maxAudiences) {
			for j, a := range s.Audiences {
				c.text(fmt.Sprintf("%s.audiences[%d]", at, j), a, maxPattern)
			}
		}
		c.keys(at, s)
		if s.Header != "" {
			c.headerName(at+".header", s.Header)
		}
		out = append(out, access.Issuer{
			Name: s.Name, Issuer: s.Issuer, Audiences: s.Audiences, JWKS: s.JWKS, JWKSFile: s.JWKSFile, JWKSURL: s.JWKSURL,
			Header: textproto.CanonicalMIMEHeaderKey(s.Header),
		})
	}
	return out
}

// keys checks where an issuer's keys come from.
func (c *checker) keys(at string, s *meshv1alpha1.TokenIssuer) {
	given := 0
	for _, v := range []string{s.JWKS, s.JWKSFile, s.JWKSURL} {
		if v != "" {
			given++
		}
	}
	if given != 1 {
		c.addf(at, "want one of jwks, jwksFile and jwksURL: where its keys come from")
		return
	}
	switch {
	case len(s.JWKS) > maxJWKS:
		c.addf(at+".jwks", "%d bytes, more than the limit of %d", len(s.JWKS), maxJWKS)
	case s.JWKS != "":
		if err := checkJWKS(s.JWKS); err != nil {
			c.addf(at+".jwks", "%v", err)
		}
	case s.JWKSFile != "":
		if !isFileName(s.JWKSFile) {
			c.addf(at+".jwksFile", "%q: want the name of a file in the sidecars' folder of keys: letters, digits, '-', '_' and inner '.', at most 253", s.JWKSFile)
		}
	default:
		u, err := url.Parse(s.JWKSURL)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" || len(s.JWKSURL) > maxPrincipal {
			c.addf(at+".jwksURL", "%q: want https://host/path, at most %d bytes", s.JWKSURL, maxPrincipal)
		}
	}
}

// checkJWKS looks at the form alone.
func checkJWKS(text string) error {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		return fmt.Errorf("is no JWK set (RFC 7517): %w", err)
	}
	if len(doc.Keys) == 0 {
		return fmt.Errorf("has no keys: no token would ever be believed")
	}
	return nil
}

func isFileName(s string) bool {
	if s == "" || len(s) > 253 || s[0] == '.' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}

// text checks words that are compared to the letter.
