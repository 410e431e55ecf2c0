package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
)

// maxTail is how far back the last lines of a log are looked for.
const maxTail = 1 << 20

// tail prints the end of a log file and what is added to it.
type tail struct {
	name  string
	path  string
	alone bool // its lines need no name before them
	at    int64
}

// last prints the last n lines.
func (t *tail) last(w io.Writer, n int) error {
	info, err := os.Stat(t.path)
	if err != nil {
		return err
	}
	t.at = max(0, info.Size()-maxTail)
	b, err := t.read()
	if err != nil {
		return err
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	if len(lines) > 0 && len(lines[len(lines)-1]) == 0 {
		lines = lines[:len(lines)-1]
	}
	return t.print(w, lines[max(0, len(lines)-n):])
}

// more prints what was added since.
func (t *tail) more(w io.Writer) error {
	b, err := t.read()
	if err != nil || len(b) == 0 {
		return err
	}
	return t.print(w, bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")))
}

func (t *tail) read() ([]byte, error) {
	f, err := os.Open(t.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.NewSectionReader(f, t.at, maxTail))
	t.at += int64(len(b))
	return b, err
}

func (t *tail) print(w io.Writer, lines [][]byte) error {
	for _, l := range lines {
		l = bytes.TrimSuffix(l, []byte("\n"))
		var err error
		if t.alone {
			_, err = fmt.Fprintf(w, "%s\n", l)
		} else {
			_, err = fmt.Fprintf(w, "%s  %s\n", t.name, l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
