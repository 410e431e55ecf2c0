package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/isthmus-mesh/isthmus/api/errcode"
)

// Every code that a program can answer with is documented.
func TestEveryCodeIsExplained(t *testing.T) {
	source, err := os.ReadFile("../../sidecar/failure.go")
	if err != nil {
		t.Fatal(err)
	}
	codes := regexp.MustCompile(`"(IST\d{4})"`).FindAllStringSubmatch(string(source), -1)
	if len(codes) == 0 {
		t.Fatal("no codes in the sidecar: has the file moved?")
	}
	for _, c := range codes {
		if _, ok := errcode.Lookup(c[1]); !ok {
			t.Errorf("isthmus explain %s says nothing", c[1])
		}
	}
}
