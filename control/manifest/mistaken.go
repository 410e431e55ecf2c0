package manifest

import (
	"slices"
	"strings"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
)

// maxTypos is how many letters a kind may be away from one that we know and still be taken for it.
const maxTypos = 2

// mistaken says what a header that we don't decode was likely meant to be; "" when it is of somebody else's. The difference
// matters: an object of a foreign kind is left out and the rest of the file counts, a misspelt one leaves the file's last good
// version in force, for its object is one that this version seems to have lost.
func mistaken(h header) string {
	if h.kind == "ServiceImport" {
		return ""
	}
	group, _, named := strings.Cut(h.apiVersion, "/")
	ours := named && (group == "multicluster.x-k8s.io" || group == meshv1alpha1.GroupVersion.Group)
	if named && !ours && group != "discovery.k8s.io" {
		return "" // a kind of the same name in another group (Knative's Service) is another kind
	}
	var versions, near []string
	for k := range kinds {
		version, kind := cutLast(k)
		switch {
		case kind == h.kind:
			versions = append(versions, version)
		case distance(kind, h.kind) <= maxTypos:
			near = append(near, kind)
		}
	}
	slices.Sort(versions)
	slices.Sort(near)
	switch {
	case len(versions) > 0:
		return "apiVersion " + h.apiVersion + " is not known for " + h.kind + ": use " + versions[len(versions)-1]
	case len(near) > 0:
		return h.kind + " is not known: is it " + near[0] + "?"
	case ours:
		return h.apiVersion + " has no kind " + h.kind + " that is used here"
	default:
		return ""
	}
}

// distance is the Levenshtein distance of two kinds, without regard to case.
func distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if a == b {
		return 0
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
