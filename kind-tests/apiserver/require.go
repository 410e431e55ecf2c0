package apiserver

import (
	"os"
	"testing"
)

// Variable names the folder of binaries in the environment. The tests that need them run where it is set, as "make kube-test" sets
// it, and not in every "go test ./...": they take a minute or two.
const Variable = "ISTHMUS_KUBE_BINARIES"

// Require returns the folder that the environment names. Where it names none the test is skipped; where the programs are not in it
// too, but in CI that is a failure: a check that was asked for and did not run would look like one that passed.
func Require(tb testing.TB) Binaries {
	tb.Helper()
	given := Binaries(os.Getenv(Variable))
	if given == "" {
		tb.Skipf("needs real API servers: run it with: make kube-test (it sets %s)", Variable)
	}
	if err := given.Check(); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal(err)
		}
		tb.Skip(err)
	}
	return given
}
