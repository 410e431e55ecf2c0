package configstream

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/topology"
)

// checkHostPort takes host:port, and the empty string, which says that there is none.
func checkHostPort(s string) error {
	if s == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || len(s) > maxText || !isPrintable(s) {
		return fmt.Errorf("address %q: want host:port", clip(s))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("address %q: want a port of 1 to 65535", clip(s))
	}
	return nil
}

func checkProtocol(p topology.Protocol) error {
	switch p {
	case topology.TCP, topology.HTTP, topology.HTTP2, topology.GRPC:
		return nil
	case topology.UDP: // has a list of its own
	}
	return fmt.Errorf("protocol %q", clip(string(p)))
}

func checkLabels(m map[string]string) error {
	if err := atMost("labels", len(m), maxLabels); err != nil {
		return err
	}
	for k, v := range m {
		if err := checkTexts(k, v); err != nil {
			return err
		}
	}
	return nil
}

// checkTexts checks words that are compared and shown, never parsed.
func checkTexts(words ...string) error {
	for _, s := range words {
		if len(s) > maxText || !isPrintable(s) {
			return fmt.Errorf("text %q: want at most %d bytes, printable", clip(s), maxText)
		}
	}
	return nil
}

func isPrintable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func atMost(what string, n, limit int) error {
	if n > limit {
		return fmt.Errorf("%d %s: want at most %d", n, what, limit)
	}
	return nil
}

// clip shortens foreign words for an error message.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

func sortedKeys(m map[[32]byte]struct{}) [][32]byte {
	return slices.SortedFunc(maps.Keys(m), func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
}
