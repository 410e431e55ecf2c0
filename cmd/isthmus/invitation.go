package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/control/manifest"
)

// maxInvitation bounds what is read of an invitation.
const maxInvitation = 64 << 10

// inAnswerTo is the annotation of an invitation that answers another: the cluster it names has been let in already, so its side need
// not invite again. It is not applied.
const inAnswerTo = "isthmus.dev/in-answer-to"

// invitation is a ClusterPeer on its way from the cluster that it lets in to the one that lets it in.
type invitation struct {
	admin.Introduction
	answers string // the cluster whose invitation it answers
}

// clusterPeer is the manifest: without comments, and without what is meant for whoever accepts.
func clusterPeer(in admin.Introduction, annotations string) string {
	urls := make([]string, len(in.BusURLs))
	for i, u := range in.BusURLs {
		urls[i] = fmt.Sprintf("%q", u)
	}
	var lists strings.Builder
	for _, l := range []struct {
		field   string
		entries []string
	}{{"podCIDRs", in.PodCIDRs}, {"namespaces", in.Namespaces}} {
		if len(l.entries) == 0 {
			continue
		}
		quoted := make([]string, len(l.entries))
		for i, e := range l.entries {
			quoted[i] = fmt.Sprintf("%q", e)
		}
		lists.WriteString("  " + l.field + ": [" + list(quoted) + "]\n")
	}
	return fmt.Sprintf(`apiVersion: isthmus.dev/v1alpha1
kind: ClusterPeer
metadata: {name: %s%s}
spec:
  trustDomain: %s
  rootFingerprint: %s
  bus:
    key: %s
    urls: [%s]
%s`, in.Cluster, annotations, in.TrustDomain, in.RootFingerprint, in.BusKey, list(urls), lists.String())
}

// String is the invitation as it is handed over. It ends with the mark of a document's end, so that whoever reads it from a pipe need
// not wait for the pipe's.
func (i invitation) String() string {
	annotations := ""
	if i.answers != "" {
		annotations = fmt.Sprintf(", annotations: {%s: %s}", inAnswerTo, i.answers)
	}
	return fmt.Sprintf(`# Cluster %[1]s asks to be let into another cluster of its mesh. There:
#
#   isthmus peer accept FILE                 (--context CONTEXT, or --control SOCKET)
#
# It holds no secret. But whoever can change it on its way can take %[1]s's place: compare the fingerprint
# over another way, with what "isthmus introduction" says in %[1]s.
%[2]s...
`, i.Cluster, clusterPeer(i.Introduction, annotations))
}

// readInvitation reads until the mark of the document's end, or the end.
func readInvitation(name string, from io.Reader) (invitation, error) {
	var text strings.Builder
	lines := bufio.NewScanner(io.LimitReader(from, maxInvitation))
	for lines.Scan() && strings.TrimRight(lines.Text(), " \r") != "..." {
		text.WriteString(lines.Text() + "\n")
	}
	if err := lines.Err(); err != nil {
		return invitation{}, fmt.Errorf("%s: %w", name, err)
	}
	if text.Len() == 0 {
		return invitation{}, fmt.Errorf("%s: no invitation there, it is empty; make one in the other cluster: isthmus peer invite", name)
	}
	return parseInvitation(name, text.String())
}

// parseInvitation takes one ClusterPeer, by the checks that control makes of a manifest.
func parseInvitation(name, text string) (invitation, error) {
	file := manifest.Parse(name, []byte(text))
	if problems := slices.Concat(file.Problems, file.Skipped); len(problems) > 0 {
		var errs []error
		for _, p := range problems {
			errs = append(errs, errors.New(p.String()))
		}
		return invitation{}, fmt.Errorf("this is no invitation: %w", errors.Join(errs...))
	}
	if len(file.Objects) != 1 || file.Objects[0].Peer == nil {
		return invitation{}, fmt.Errorf("%s: this is no invitation: want one ClusterPeer, as isthmus peer invite prints it, and nothing else", name)
	}
	var head struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		return invitation{}, fmt.Errorf("%s: %w", name, err)
	}
	p := file.Objects[0].Peer
	var pods []string
	for _, prefix := range p.PodCIDRs {
		pods = append(pods, prefix.String())
	}
	return invitation{admin.Introduction{
		Cluster: p.Cluster.String(), TrustDomain: p.Domain.Name(), RootFingerprint: p.RootFingerprint, BusKey: p.BusKey, BusURLs: p.BusURLs,
		PodCIDRs: pods, Namespaces: p.Namespaces,
	}, head.Metadata.Annotations[inAnswerTo]}, nil
}

// errOtherCluster is an invitation that would put another cluster in the place of one that has been let in.
var errOtherCluster = errors.New("it is another cluster")

// verify says what accepting the invitation would change, in words; nothing when it is in force already. It refuses what would let the
// cluster itself in, or (unless replace) another one under a name that is taken.
func (i invitation) verify(self admin.Introduction, known []admin.Introduction, replace bool) (changes []string, err error) {
	switch {
	case i.Cluster == self.Cluster && i.RootFingerprint == self.RootFingerprint:
		return nil, fmt.Errorf("this is the invitation of %s itself; accept it in the other cluster", self.Cluster)
	case i.Cluster == self.Cluster:
		return nil, fmt.Errorf("the cluster that invites is called %s, as this one is; one of them needs another name", self.Cluster)
	case i.TrustDomain == self.TrustDomain:
		return nil, fmt.Errorf("%s has the trust domain %s, as this cluster has; each needs its own", i.Cluster, self.TrustDomain)
	case i.RootFingerprint == self.RootFingerprint, i.BusKey == self.BusKey:
		return nil, fmt.Errorf("%s has the keys of this cluster: its state is a copy of this one's; give it a state of its own", i.Cluster)
	}
	var have *admin.Introduction
	for n := range known {
		k := &known[n]
		switch {
		case k.Cluster == i.Cluster:
			have = k
		case k.RootFingerprint == i.RootFingerprint:
			return nil, fmt.Errorf("%s has the fingerprint of %s, which is let in already: it is the same cluster, renamed. First: isthmus peer remove %s",
				i.Cluster, k.Cluster, k.Cluster)
		case k.TrustDomain == i.TrustDomain:
			return nil, fmt.Errorf("%s has the trust domain of %s, %s; each cluster needs its own", i.Cluster, k.Cluster, k.TrustDomain)
		}
	}
	if have == nil {
		return []string{"new"}, nil
	}
	differs := func(what, was, is string) {
		if was != is {
			changes = append(changes, fmt.Sprintf("%s was %s", what, cmp.Or(was, "none")))
		}
	}
	differs("fingerprint", have.RootFingerprint, i.RootFingerprint)
	differs("trust domain", have.TrustDomain, i.TrustDomain)
	if len(changes) > 0 && !replace {
		return nil, fmt.Errorf("%w than the %s that has been let in (%s). If %s was set up anew, and this fingerprint is its own, accept it with --replace",
			errOtherCluster, i.Cluster, strings.Join(changes, "; "), i.Cluster)
	}
	differs("bus key", have.BusKey, i.BusKey)
	differs("bus", list(have.BusURLs), list(i.BusURLs))
	differs("pods", list(have.PodCIDRs), list(i.PodCIDRs))
	differs("namespaces", cmp.Or(list(have.Namespaces), "all"), cmp.Or(list(i.Namespaces), "all"))
	return changes, nil
}
