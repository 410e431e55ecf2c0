// Package errcode holds the error codes that Isthmus answers with, and what each means: the text of `isthmus explain
// ISTnnnn`. A code is never reused and its meaning never changes; IST2nnn are the sidecar's (header Isthmus-Error).
package errcode

import (
	"slices"
	"strings"
)

// Entry is one code.
type Entry struct {
	Code    string
	Title   string // one line
	Meaning string // what happened, and on which side
	Fix     string // what to look at first
}

// Lookup returns the entry of a code, in whatever case it is written.
func Lookup(code string) (Entry, bool) {
	i := slices.IndexFunc(entries, func(e Entry) bool { return strings.EqualFold(e.Code, code) })
	if i < 0 {
		return Entry{}, false
	}
	return entries[i], true
}

// All returns every entry, ordered by code.
func All() []Entry { return slices.Clone(entries) }

var entries = []Entry{
	{
		"IST2001", "The host is outside the mesh",
		"The caller's sidecar carries calls to names that end in .svc.clusterset.local or .svc.cluster.local. This host is none.",
		"Call it without the proxy: list the host in no_proxy, or unset http_proxy.",
	},
	{
		"IST2002", "The target can't be read, or reads two ways",
		"The request's target is no valid absolute URL or host:port, or it says two different things. The mesh refuses what two parsers could read differently.",
		"Look at the URL and the Host header that the client sends.",
	},
	{
		"IST2003", "No such service",
		"No cluster that this one knows has a service of that name, so nothing was sent.",
		"Check the spelling (NAME.NAMESPACE.svc.clusterset.local). See: isthmus get services, isthmus get imports.",
	},
	{
		"IST2004", "The service has no such port",
		"The service exists; the port that was asked for isn't one of its Service ports (which are not the application's own ports).",
		"See the PORTS of: isthmus get imports.",
	},
	{
		"IST2005", "No cluster exports the service",
		"A name under clusterset.local means exported copies. The service exists, but no cluster exports it to this one.",
		"Create a ServiceExport where it runs, or call NAME.NAMESPACE.svc.cluster.local for copies of the own cluster. See: isthmus get exports.",
	},
	{
		"IST2006", "No copy may be used",
		"Copies are known, and every one is excluded: not ready, in no tier of the FailoverPolicy, or excluded by its never.",
		"The reason for each copy: isthmus explain CLUSTER/WORKLOAD NAME.NAMESPACE.",
	},
	{
		"IST2007", "Every copy that was tried failed",
		"The caller's sidecar tried one copy after another, as far as repeating the request can do no harm; none answered.",
		"See isthmus explain and isthmus status (links, gateways); the sidecar's log names each attempt.",
	},
	{
		"IST2008", "The request was sent, and its answer got lost",
		"The connection broke after the request had gone out. The application may have executed it, and the method is not idempotent, so it was not sent again.",
		"Repeat it if your application knows that this is safe. GET, HEAD, OPTIONS, PUT and DELETE are repeated by the mesh.",
	},
	{
		"IST2009", "Host and destination disagree",
		"The Host header names another service than the one the connection or the URL is for. Host never chooses the destination.",
		"Send the Host that belongs to the URL.",
	},
	{
		"IST2010", "The request went in circles",
		"It has passed more sidecars than a call can need.",
		"Look for an application that forwards requests to its own service through the mesh.",
	},
	{
		"IST2011", "No configuration yet",
		"The sidecar has just started and its control plane has not told it anything, nor has it a state on disk.",
		"Wait for its /readyz; see whether the control plane runs: isthmus status.",
	},
	{
		"IST2012", "It failed, and the retry budget is used up",
		"The attempt failed, and so many requests were being retried already that one more would add to the overload.",
		"Find out why attempts fail: isthmus explain, isthmus status, the sidecar's log.",
	},
	{
		"IST2013", "CONNECT in a form that isn't served",
		"The proxy serves CONNECT host:port for names of the mesh.",
		"Look at what the client sends; extended CONNECT (RFC 8441) isn't served here.",
	},
	{
		"IST2014", "Too many headers",
		"The request's headers are larger, or more, than any server behind could be expected to take.",
		"Look at cookies and forwarded headers.",
	},
	{
		"IST2015", "The caller's deadline is over, or too near",
		"The application said how long it waits for the answer (grpc-timeout, x-envoy-upstream-rq-timeout-ms), and there was none by then; or a try had failed and too little was left for another.",
		"The answer says what was tried. See how long answers take: isthmus_request_duration_seconds.",
	},
	{
		"IST2016", "A stream was ended, because its copy is drained",
		"A gRPC stream was open to a copy that its owner takes out of use, and did not end by itself within three to four times the drain's --over.",
		"Open the stream anew: it goes to another copy. isthmus status says what is drained.",
	},
	{
		"IST2101", "The called workload does not serve this",
		"The call reached the sidecar of a workload that serves no such service or port: what its caller knew was old.",
		"It passes by itself. If it stays: compare isthmus get services there with isthmus get endpoints here.",
	},
	{
		"IST2102", "The called application does not take connections",
		"The call reached the called workload's sidecar, and nothing listens where the Workload or EndpointSlice says that the application does.",
		"See whether the application runs, and whether the port in its manifest is right.",
	},
	{
		"IST2103", "The called application broke off",
		"The application took the request and closed the connection before its answer was complete.",
		"See the application's log.",
	},
	{
		"IST2104", "The caller may not",
		"The called side knows who calls, and does not allow it.",
		"See who may: the ServiceExport's audience, whether the caller's cluster is a peer of the called one, and the AccessPolicies of the called workload: its sidecar's log names the rule that refused.",
	},
	{
		"IST2105", "The called sidecar carries as much as it may",
		"The sidecar of the called workload has 10,000 requests in flight and took no more; the application saw nothing of this one. The caller's sidecar tries another copy by itself.",
		"Run more copies, or find out why requests take so long: isthmus_request_duration_seconds of the called sidecar.",
	},
	{
		"IST2106", "An end user's token is missing, or no good",
		"An AccessPolicy of the called workload lets the request through only on behalf of an end user, and it has no token, or one that is expired, of another issuer or audience, or not signed by its keys.",
		"Send a valid token, by default as Authorization: Bearer; WWW-Authenticate of the answer says which of the two it is. isthmus_sidecar_tokens_refused_total of the called sidecar says why tokens are no good; where that is no_keys, its log says why the issuer's keys can't be had.",
	},
	{
		"IST2107", "Above a quota",
		"A QuotaPolicy of the called workload bounds how many requests it takes: of this caller, of this end user, or of all together.",
		"Wait as long as Retry-After says; RateLimit-Policy and RateLimit tell the limit and what is left of it. The called sidecar's metrics name the quota.",
	},
	{
		"IST2108", "A failover drill is on",
		"Somebody rehearses a failover (isthmus drill): the called workload's cluster looks dead for this service, so nothing was executed there, and the caller's sidecar goes elsewhere.",
		"Nothing, if another cluster answers: that is what is rehearsed. See isthmus drill list; isthmus drill stop ends it.",
	},
	{
		"IST2109", "The application did not answer before the caller's deadline",
		"The caller had said how long it waits. The called sidecar gave up at that time and cancelled the request at its application, which may have carried it out.",
		"Find out why the application takes so long, or let the caller wait longer.",
	},
	{
		"IST2110", "The called application has more to do than it can",
		"Answers of the called application have become late because of how many it was asked for at a time, so its sidecar gives it no more than it can answer in time. The application saw nothing of this request; the caller's sidecar tries another copy, or cluster, by itself.",
		"Run more copies. isthmus_concurrency_limit and isthmus_shed_requests_total of the called sidecar tell how many it takes at a time, and how many were refused.",
	},
}
