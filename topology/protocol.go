package topology

import "strings"

// ParseProtocol tells what a port speaks by its appProtocol and, when there is none, by its name: "http", or
// "http-" and more (the convention that Istio began). An appProtocol that is not known is opaque, whatever
// the name says: the user did say what it is. So is TLS that the application ends itself.
func ParseProtocol(appProtocol, portName string) Protocol {
	if appProtocol != "" {
		return wellKnown(strings.ToLower(appProtocol))
	}
	name := strings.ToLower(portName)
	if name == "grpc-web" || strings.HasPrefix(name, "grpc-web-") {
		return HTTP
	}
	prefix, _, _ := strings.Cut(name, "-")
	return wellKnown(prefix)
}

// wellKnown knows IANA service names, Kubernetes' own (KEP-3726) and those that have become custom.
func wellKnown(name string) Protocol {
	switch name {
	case "http", "ws", "kubernetes.io/ws", "grpc-web":
		return HTTP
	case "http2", "h2c", "kubernetes.io/h2c":
		return HTTP2
	case "grpc":
		return GRPC
	default: // "tcp", "https", "tls", "kubernetes.io/wss" and all others
		return TCP
	}
}
