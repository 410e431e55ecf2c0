package main

import (
	"slices"
	"strings"
)

// didYouMean is what to add to an error about a name that is none of names: the closest one, as a question, else what there is.
func didYouMean(name string, names []string) string {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	best, distance := "", max(2, len(name)/4)+1
	for _, n := range names {
		if d := editDistance(strings.ToLower(name), strings.ToLower(n)); d < distance {
			best, distance = n, d
		}
	}
	switch {
	case best != "":
		return "; did you mean " + best + "?"
	case len(names) == 0:
		return ""
	default:
		return "; there are: " + list(names)
	}
}

// editDistance is how many letters must be put in, left out or changed to make b of a (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
