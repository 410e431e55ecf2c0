package gateway

import (
	"strings"
	"unicode"
)

// maxWords bounds what is kept of the words of a peer, in bytes.
const maxWords = 256

// words returns what an error says, fit to be told on: there may be words of a peer in it (why it closed a connection), and those are any
// bytes. What is no UTF-8 could not be sent, and would end the stream to control with the report.
func words(err error) string {
	text := err.Error()
	text = strings.ToValidUTF8(text[:min(len(text), maxWords)], "")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}
