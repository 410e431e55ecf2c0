// Package kindtests holds the proof that Isthmus does on Kubernetes what it says: scenarios as text, run on real clusters with the
// real programs. It is all tests, and knows no more than a user does: the programs, kubectl, and the API. Only the random
// exports are compared with what federation.Merge says. README.md tells how to run it.
package kindtests
