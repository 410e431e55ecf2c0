package main

const help = `isthmus-gateway carries encrypted streams between the clusters of a mesh.

Usage:
  isthmus-gateway --config FILE
  isthmus-gateway --help | --version

The file is YAML. Unknown and duplicate keys are refused, with their line. Paths are
relative to the working directory, addresses are host:port. ${NAME} stands for the value of
that environment variable.

  id: gateway-0                     Name of this gateway, unique in its cluster. Required.
  control: 10.0.0.5:7400            Address of the cluster's control plane (gRPC). Required.
  trustDomain: eu.example           The cluster's trust domain. Required.
  state: /var/lib/isthmus/gateway   Directory for the identity and the last configuration, made if need
                                    be, readable by this user alone. With it the gateway starts and
                                    serves while control is away. Required.
  joinTokenFile: gateway.token      File with a single-use join token (isthmus join-token --gateway ID).
                                    Needed until an identity is in the state directory.
  trustBundleFile: trust-bundle.pem The trust domain's roots (PEM), as control writes them. Needed until
                                    the first configuration is in the state directory.
  identity:
    workloadAPI: unix:///run/spire/agent.sock  SPIFFE Workload API of somebody else that says who the gateway is, and by
                                    which roots control is known, instead of the two files above. Control must
                                    be set up so, too (authority.workloadAPI). Default: control says so.
  listen:
    streams: 10.0.0.6:7443          TCP, for the cluster's own sidecars. Required.
    quic: 10.0.0.6:7443             UDP, for gateways of other clusters. Required.
    tcp: 10.0.0.6:7443              TCP, likewise, for where UDP does not pass; may be that of streams. Or off.
                                    Default: that of quic.
    admin: 127.0.0.1:7480           TCP, plain HTTP: /metrics, /livez, /readyz. Default: none.
  advertise:                        What others are told, when it differs from listen (port 0: the bound one).
    streams: 10.0.0.6:7443          Must be reachable for the cluster's sidecars.
    quic: gw-eu.example.net:7443    Must be reachable for the gateways of other clusters.
    tcp: gw-eu.example.net:7443     Likewise. Default: that of quic, unless listen.tcp says another port.
  connectionsPerPeer: 4             QUIC connections to each peer cluster, spread over its gateways; at
                                    least one to each. 1 to 32, default 4.
  probeInterval: 100ms              How often each connection is probed. 10ms to 1s, default 100ms.
  deadAfter: 400ms                  Silence after which a connection may be given up. Default 400ms.
  drainGrace: 10s                   How long streams may take to end after SIGTERM. Default 10s.
  log:
    level: info                     debug, info, warn or error. Default info.
    format: text                    text or json. Default text.

SIGTERM and SIGINT drain: peers are told, nothing new is taken, streams end within drainGrace. A
second signal ends the process at once. Traces are exported when OTEL_TRACES_EXPORTER or
OTEL_EXPORTER_OTLP_* variables say where to.

Exit codes: 0 asked to stop, and drained; 1 failed; 2 usage or configuration.
`
