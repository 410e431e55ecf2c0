// Package kindtests holds the proof that Isthmus does on Kubernetes what it says: scenarios as text, run on real API servers with the
// real programs. It is all tests, and knows nothing of the code but what a user does: the programs, kubectl, and the API.
// README.md says how to run it.
package kindtests
