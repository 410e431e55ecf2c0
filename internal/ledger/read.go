package ledger

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxLine bounds a line of a log.
const maxLine = 1 << 20

// line is a request in the JSON log of a sidecar or of the sample application.
type line struct {
	Time      time.Time `json:"time"`
	Msg       string    `json:"msg"`
	Direction string    `json:"direction"`
	Method    string    `json:"method"`
	Service   string    `json:"service"`
	Caller    string    `json:"caller"`
	Status    int       `json:"status"`
	TraceID   string    `json:"trace_id"`
}

// The words of those logs.
const (
	msgRequest = "request"
	inbound    = "inbound"
	outbound   = "outbound"
	served     = "served"
)

// ReadLog returns the entries in the log of a program of a copy; lines that are none are passed over, also the last, when the program died
// while it wrote it.
func ReadLog(r io.Reader, cluster, copied string) ([]Entry, error) {
	var out []Entry
	lines := bufio.NewReaderSize(r, maxLine)
	for {
		text, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("ledger: %w", err)
		}
		var l line
		if json.Unmarshal(text, &l) != nil || l.Msg != msgRequest || l.TraceID == "" {
			continue
		}
		e := Entry{ID: l.TraceID, At: l.Time, Cluster: cluster, Copy: copied, Method: l.Method, Service: l.Service, Caller: l.Caller, Status: l.Status}
		switch l.Direction {
		case outbound:
			e.Role = Caller
		case inbound:
			e.Role = Callee
		case served:
			e.Role = Origin
		default:
			continue
		}
		out = append(out, e)
	}
}
