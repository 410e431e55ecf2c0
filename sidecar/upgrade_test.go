package sidecar

import (
	"net/http"
	"testing"
)

// TestForeignUpgrades: no spelling of another HTTP gets through; other protocols do.
func TestForeignUpgrades(t *testing.T) {
	for offer, kept := range map[string]bool{
		"websocket": true, "WebSocket": true, "foo/2": true,
		"h2c": false, "H2C": false, "h2": false, "h2c-14": false, `"h2c"`: false, " h2c\t": false, "HTTP/2.0": false, "TLS/1.3": false,
		"h2c;q=1": false, "websocket, h2c": false, "foo,\"h2c-16\"": false,
	} {
		r := &http.Request{Header: http.Header{"Upgrade": {offer}, "Http2-Settings": {"AAMAAABkAAQ"}}}
		dropForeignUpgrade(r)
		if got := r.Header.Get("Upgrade") != ""; got != kept {
			t.Errorf("Upgrade: %s: carried %t, want %t", offer, got, kept)
		}
	}
}
