package sidecar

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Directions, as metrics, logs and traces name them.
const (
	outbound = "outbound"
	inbound  = "inbound"
)

// maxCallers bounds the values of source_workload: past it, a caller is "other".
const maxCallers = 256

// metrics are what a sidecar counts. Labels are bounded: by the services in use, the clusters of the mesh, the answer codes,
// maxCallers and maxPolicyLabels.
type metrics struct {
	requests    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	retries     *prometheus.CounterVec
	hedges      *prometheus.CounterVec
	overBudget  *prometheus.CounterVec
	ejections   *prometheus.CounterVec
	sessions    *prometheus.GaugeVec
	dials       *prometheus.CounterVec
	connections *prometheus.GaugeVec
	bytes       *prometheus.CounterVec
	passed      prometheus.Counter
	shed        *prometheus.CounterVec
	limit       *prometheus.GaugeVec
	decisions   *prometheus.CounterVec
	quotas      *prometheus.CounterVec
	tokens      *prometheus.CounterVec

	udp udpMetrics

	mu      sync.RWMutex
	callers map[string]struct{}    // guarded by mu
	rules   map[[2]string]struct{} // guarded by mu: policy and rule
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		requests: counter("isthmus_requests_total", "Requests that have ended. code is the HTTP status that the caller got (499: it went away; 0: the answer broke off); error is the mesh's own code, empty when the application answered.",
			"direction", "source_cluster", "source_workload", "destination_cluster", "destination_service", "destination_port", "code", "error"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "isthmus_request_duration_seconds", Help: "From the request's headers to the end of the answer.",
			Buckets:                         []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: 0,
		}, []string{"direction", "destination_cluster", "destination_service"}),
		hedges:      counter("isthmus_hedges_total", "Requests of which a second try was made beside the first, because its copy had fallen silent.", "destination_service"),
		retries:     counter("isthmus_retries_total", "Attempts after the first. unsent: the attempt before had not reached the application.", "destination_service", "unsent"),
		overBudget:  counter("isthmus_retry_budget_exhausted_total", "Requests that failed because too many were being retried.", "destination_service"),
		ejections:   counter("isthmus_ejections_total", "Copies that were left alone for a while because requests to them failed.", "destination_cluster", "destination_service"),
		sessions:    gauge("isthmus_sessions", "Inner sessions that are open, to other workloads.", "destination_cluster", "destination_service"),
		dials:       counter("isthmus_session_dials_total", "Attempts to open an inner session.", "destination_cluster", "destination_service", "result"),
		connections: gauge("isthmus_connections", "Connections that are open: outbound from the own application, inbound from other workloads.", "direction"),
		bytes:       counter("isthmus_tcp_bytes_total", "Bytes of opaque connections. sent: from the caller to the called.", "direction", "destination_cluster", "destination_service", "way"),
		passed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "isthmus_passed_connections_total", Help: "Captured connections that were passed on as they are, because no service of the mesh has their address.",
		}),
		shed:  counter("isthmus_shed_requests_total", "Requests that were refused because the own application has more to do than it can.", "destination_service", "destination_port"),
		limit: gauge("isthmus_concurrency_limit", "Requests that the own application is given at a time. 0: there is no limit now.", "destination_service", "destination_port"),
		decisions: counter("isthmus_sidecar_policy_decisions_total", "Requests and opaque connections that access policies spoke of. decision: allow, deny, audit-deny (policies in audit mode would have refused it).",
			"policy", "rule", "decision"),
		quotas: counter("isthmus_sidecar_quota_decisions_total", "Requests and opaque connections that quotas were for. decision: allow, deny, audit-deny (a quota in audit mode would have refused it).",
			"quota", "decision"),
		tokens:  counter("isthmus_sidecar_tokens_refused_total", "Tokens of end users that were no good.", "issuer", "reason"),
		udp:     newUDPMetrics(),
		callers: make(map[string]struct{}),
		rules:   make(map[[2]string]struct{}),
	}
	for _, c := range append(m.udp.collectors(), m.requests, m.duration, m.retries, m.hedges, m.overBudget, m.ejections, m.sessions, m.dials, m.connections, m.bytes, m.passed, m.shed, m.limit, m.decisions, m.quotas, m.tokens) {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// caller returns the label value for a caller.
func (m *metrics) caller(workload string) string {
	m.mu.RLock()
	_, ok := m.callers[workload]
	m.mu.RUnlock()
	if ok {
		return workload
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.callers) >= maxCallers {
		return other
	}
	m.callers[workload] = struct{}{}
	return workload
}

// portLabel and codeLabel are label values; the usual ones cost nothing.
func portLabel(port uint16) string { return strconv.Itoa(int(port)) }

func codeLabel(status int) string { return strconv.Itoa(status) }

// maxPolicyLabels is how many pairs of policy and rule are told apart. Policies come and go, and their counters stay.
const maxPolicyLabels = 2_000

// policyDecision counts a decision of a policy's rule.
func (m *metrics) policyDecision(policy, rule, decision string) {
	if !m.known([2]string{policy, rule}) {
		policy, rule = other, other
	}
	m.decisions.WithLabelValues(policy, rule, decision).Inc()
}

// quotaDecision counts a decision of a quota.
func (m *metrics) quotaDecision(name, decision string) {
	if !m.known([2]string{name}) {
		name = other
	}
	m.quotas.WithLabelValues(name, decision).Inc()
}

// tokenRefused counts a token that was no good.
func (m *metrics) tokenRefused(issuer, reason string) {
	if !m.known([2]string{"", issuer}) {
		issuer = other
	}
	m.tokens.WithLabelValues(issuer, reason).Inc()
}

// other stands for all past a bound.
const other = "other"

// known reports whether something of policies may have a label of its own.
func (m *metrics) known(key [2]string) bool {
	m.mu.RLock()
	_, ok := m.rules[key]
	m.mu.RUnlock()
	if ok {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.rules) >= maxPolicyLabels {
		return false
	}
	m.rules[key] = struct{}{}
	return true
}
