package main

import "testing"

// TestIsAddress: names that somebody else could have resolved to this machine are not answered.
func TestIsAddress(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1:15020": true, "127.0.0.1": true, "[::1]:15020": true, "[::1]": true, "10.1.0.7:15020": true, "localhost:15020": true,
		"evil.example:15020": false, "evil.example": false, "127.0.0.1.evil.example": false, "": false,
	} {
		if got := isAddress(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}
