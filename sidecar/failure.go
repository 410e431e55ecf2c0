package sidecar

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
)

// Code is a stable name of what went wrong, in the Isthmus-Error header and in logs and metrics. Never reused.
type Code string

// The codes. docs/reference/sidecar.md says of each what it means and what to do.
const (
	CodeNotMesh     Code = "IST2001" // the host is outside the mesh
	CodeBadTarget   Code = "IST2002" // the target can't be read, or reads two ways
	CodeUnknown     Code = "IST2003" // no such service
	CodeUnknownPort Code = "IST2004" // the service has no such port
	CodeNotImported Code = "IST2005" // no cluster exports the service
	CodeNoCopy      Code = "IST2006" // no copy may be used
	CodeNoAnswer    Code = "IST2007" // every copy that was tried failed
	CodeAnswerLost  Code = "IST2008" // the request was sent, the answer got lost
	CodeMisdirected Code = "IST2009" // Host and destination disagree
	CodeLoop        Code = "IST2010" // the request went in circles
	CodeNotReady    Code = "IST2011" // no configuration yet
	CodeBudget      Code = "IST2012" // failed, and the retry budget is used up
	CodeUnsupported Code = "IST2013" // CONNECT in a form that isn't served
	CodeTooLarge    Code = "IST2014" // too many headers
	CodeDeadline    Code = "IST2015" // the caller's deadline is over, or too near
	CodeMoved       Code = "IST2016" // a stream was ended, because its copy is drained
	CodeNotServed   Code = "IST2101" // the called workload does not serve this
	CodeAppDown     Code = "IST2102" // the called application does not take connections
	CodeAppBroke    Code = "IST2103" // the called application broke off
	CodeNotAllowed  Code = "IST2104" // the caller may not
	CodeOverloaded  Code = "IST2105" // the called workload's sidecar carries as much as it may
	CodeNoUser      Code = "IST2106" // an end user's token is missing, or no good
	CodeTooMany     Code = "IST2107" // above a quota
	CodeDrill       Code = "IST2108" // a failover drill makes the called workload look dead
	CodeAppLate     Code = "IST2109" // the called application did not answer before the caller's deadline
	CodeBusy        Code = "IST2110" // the called application has more to do than it can
)

var errEnding = errors.New("this sidecar is ending")

// The headers that sidecars use among themselves and towards applications. Whatever begins with "Isthmus-" and is not said here
// is dropped on both sides.
const (
	headerPrefix = "Isthmus-"
	// headerCaller tells the called application who calls: a SPIFFE ID. Written by the called workload's sidecar alone.
	headerCaller = "Isthmus-Caller"
	// headerError names the Code of an answer that the mesh made.
	headerError = "Isthmus-Error"
	// headerHops counts the sidecars that a request has passed.
	headerHops = "Isthmus-Hops"
	// headerExpect carries Expect between sidecars: net/http's HTTP/2 server takes that header off and does not say so.
	headerExpect = "Isthmus-Expect"
	// headerOutcome marks an answer that the called workload's sidecar made in place of the application. It never
	// reaches the caller.
	headerOutcome = "Isthmus-Outcome"
	outcomeUnsent = "unsent" // the application saw nothing of the request
	outcomeSent   = "sent"   // it may have
	// outcomeElsewhere: it saw nothing, and here it is not for this caller's cluster any more; another cluster's copies may be. Where there are
	// none, the answer is the caller's.
	outcomeElsewhere = "elsewhere"
)

// statusClientClosed is what is recorded when the caller went away (nginx's number for it).
const statusClientClosed = 499

// Failure is an answer that the mesh makes in place of an application.
type Failure struct {
	Status int
	Code   Code
	Text   string      // for people: what, where, why, what to do
	Err    error       // may be nil
	Header http.Header // of the answer, beside its own; may be nil
}

// Error returns the text.
func (f *Failure) Error() string { return f.Text }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

func fail(status int, code Code, format string, args ...any) *Failure {
	return &Failure{Status: status, Code: code, Text: fmt.Sprintf(format, args...)}
}

// write answers r with f: as plain text, or, when r is a gRPC call, as the status UNAVAILABLE, PERMISSION_DENIED,
// UNAUTHENTICATED, RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED with the text.
func (f *Failure) write(w http.ResponseWriter, r *http.Request) {
	if isGRPC(r) {
		h := w.Header()
		f.setGRPC(h)
		h.Set("Content-Type", "application/grpc")
		w.WriteHeader(http.StatusOK)
		return
	}
	f.writePlain(w)
}

// writePlain answers with f as plain text.
func (f *Failure) writePlain(w http.ResponseWriter) {
	h := w.Header()
	maps.Copy(h, f.Header)
	h.Set(headerError, string(f.Code))
	h.Set("Cache-Control", "no-store")
	if f.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	http.Error(w, f.message(), f.Status)
}

func (f *Failure) message() string { return "isthmus: " + f.Text + " (" + string(f.Code) + ")" }

// stripOwn removes from h every header that only the mesh may write, in whatever spelling an application could take for it,
// but for those to keep.
func stripOwn(h http.Header, keep ...string) {
	for name := range h {
		if !isOwn(name) {
			continue
		}
		kept := false
		for _, k := range keep {
			kept = kept || name == k
		}
		if !kept {
			delete(h, name)
		}
	}
}

// isOwn also knows the spellings that CGI-like interfaces can't tell from ours: they make one character of all that is neither
// letter nor digit.
func isOwn(name string) bool {
	if len(name) < len(headerPrefix) || !strings.EqualFold(name[:len(headerPrefix)-1], headerPrefix[:len(headerPrefix)-1]) {
		return false
	}
	c := name[len(headerPrefix)-1] | 0x20 // lower case, for letters
	return (c < 'a' || c > 'z') && (name[len(headerPrefix)-1] < '0' || name[len(headerPrefix)-1] > '9')
}
