package manifest

import (
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
)

// maxBusURLs bounds the addresses that a peer's bus has.
const maxBusURLs = 16

// maxPodCIDRs bounds the prefixes that a peer's pods are in.
const maxPodCIDRs = 64

// maxPeerNamespaces bounds those in which a peer's exports count.
const maxPeerNamespaces = 1024

func clusterPeer(c *checker, in *meshv1alpha1.ClusterPeer) Object {
	p := &control.ClusterPeer{
		Meta:            c.meta(&in.ObjectMeta, false, validation.IsDNS1123Label),
		RootFingerprint: in.Spec.RootFingerprint, BusURLs: in.Spec.Bus.URLs, BusKey: in.Spec.Bus.Key,
		Generation: in.Generation,
	}
	if len(c.errs) == 0 {
		name, err := topology.ParseClusterName(p.Name)
		if err != nil {
			c.addf("metadata.name", "%v", err)
		}
		p.Cluster = name
	}
	p.Domain = c.trustDomain("spec.trustDomain", in.Spec.TrustDomain)
	c.fingerprint("spec.rootFingerprint", in.Spec.RootFingerprint)
	c.busKey("spec.bus.key", in.Spec.Bus.Key)
	if len(in.Spec.Bus.URLs) > maxBusURLs {
		c.addf("spec.bus.urls", "%d URLs, more than the limit of %d", len(in.Spec.Bus.URLs), maxBusURLs)
		return Object{Peer: p}
	}
	for i, u := range in.Spec.Bus.URLs {
		c.busURL(fmt.Sprintf("spec.bus.urls[%d]", i), u)
	}
	p.BusURLs = slices.Clone(p.BusURLs)
	p.PodCIDRs = c.prefixes("spec.podCIDRs", in.Spec.PodCIDRs)
	if len(in.Spec.Namespaces) > maxPeerNamespaces {
		c.addf("spec.namespaces", "%d namespaces, more than the limit of %d", len(in.Spec.Namespaces), maxPeerNamespaces)
		return Object{Peer: p}
	}
	for i, n := range in.Spec.Namespaces {
		c.all(fmt.Sprintf("spec.namespaces[%d]", i), strconv.Quote(n), validation.IsDNS1123Label(n))
	}
	p.Namespaces = slices.Clone(in.Spec.Namespaces)
	return Object{Peer: p}
}

// trustDomain reads the name of a trust domain.
func (c *checker) trustDomain(field, name string) spiffeid.TrustDomain {
	td, err := spiffeid.TrustDomainFromString(name)
	switch {
	case name == "":
		c.addf(field, "is missing")
	case err != nil:
		c.addf(field, "%q: %v", name, err)
	case td.Name() != name:
		c.addf(field, "%q: want the name alone, %q", name, td.Name())
	}
	return td
}

// prefixes reads addresses of pods.
func (c *checker) prefixes(field string, in []string) (out []netip.Prefix) {
	if len(in) > maxPodCIDRs {
		c.addf(field, "%d prefixes, more than the limit of %d", len(in), maxPodCIDRs)
		return nil
	}
	for i, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() {
			c.addf(fmt.Sprintf("%s[%d]", field, i), "%q: want a prefix such as 10.1.0.0/16, without bits of a host", s)
			continue
		}
		out = append(out, p)
	}
	return out
}

func (c *checker) fingerprint(field, s string) {
	digits, ok := strings.CutPrefix(s, "sha256:")
	raw, err := hex.DecodeString(digits)
	switch {
	case s == "":
		c.addf(field, `is missing: "isthmus introduction" in the other cluster prints it`)
	case !ok || err != nil || len(raw) != 32 || strings.ToLower(digits) != digits:
		c.addf(field, `%q: want "sha256:" and 64 lower-case hex digits`, s)
	}
}

// busKey checks the form of a public user NKey (github.com/nats-io/nkeys): base32 of a prefix byte, an Ed25519 key and a CRC-16.
func (c *checker) busKey(field, s string) {
	const (
		userPrefix = 20 << 3
		length     = 1 + 32 + 2
	)
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(s)
	switch {
	case s == "":
		c.addf(field, `is missing: "isthmus introduction" in the other cluster prints it`)
	case err != nil || len(raw) != length || raw[0] != userPrefix:
		c.addf(field, `%q: want a public user NKey, "U" and 55 characters more`, s)
	case crc16(raw[:length-2]) != uint16(raw[length-2])|uint16(raw[length-1])<<8:
		c.addf(field, "%q: its checksum is wrong: a character was lost or changed", s)
	}
}

// crc16 is CRC-16/XMODEM, as NKeys use it.
func crc16(data []byte) uint16 {
	const polynomial = 0x1021
	var crc uint16
	for _, b := range data {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ polynomial
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

func (c *checker) busURL(field, s string) {
	u, err := url.Parse(s)
	if err != nil {
		c.addf(field, "%q is no URL", s)
		return
	}
	_, port, err := net.SplitHostPort(u.Host)
	if u.Scheme != "tls" || err != nil || port == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		c.addf(field, `%q: want "tls://host:port"`, s)
	}
}
