package main

const help = `isthmus-sidecar carries one workload's calls into the mesh and out of it.

Usage:
  isthmus-sidecar --config FILE
  isthmus-sidecar --help | --version

The file is YAML. Unknown and duplicate keys are refused, with their line. Paths are
relative to the working directory, addresses are host:port. ${NAME} stands for the value of
that environment variable.

  workload: shop/checkout-0         The workload it stands beside, namespace/name. Either this or
  node: node-0                      the name of a node proxy, that stands in for workloads without a
                                    sidecar.
  control: 10.0.0.5:7400            Address of the cluster's control plane (gRPC). Required.
  trustDomain: eu.example           The cluster's trust domain. Required.
  state: /var/lib/isthmus/sidecar   Directory for the identity and the last configuration, made if need
                                    be, readable by this user alone. With it the sidecar starts and
                                    serves while control is away. Required.
  joinTokenFile: sidecar.token      File with a single-use join token (isthmus join-token --workload
                                    NAMESPACE/NAME). Needed until an identity is in the state directory.
  trustBundleFile: trust-bundle.pem The trust domain's roots (PEM), as control writes them. Needed until
                                    the first configuration is in the state directory.
  identity:
    workloadAPI: unix:///run/spire/agent.sock  SPIFFE Workload API of somebody else that says who the sidecar is, and by
                                    which roots control is known, instead of the two files above. Control must
                                    be set up so, too (authority.workloadAPI). Default: control says so.
  listen:
    inbound: 10.0.0.7:15008         TCP, for calls from other workloads. Needs what the Workload's
                                    spec.sidecar.inboundPort says. Default: none is taken.
    proxy: 127.0.0.1:15001          TCP, HTTP proxy for the application (http_proxy). Default: none.
    captured: 127.0.0.1:15006       TCP, for connections that isthmus-capture has the kernel bring here.
                                    Those to no service of the mesh are passed on as they are; a node
                                    proxy resets them. Default: none.
    dns: 127.0.0.1:15053            UDP and TCP, DNS for clusterset.local and cluster.local. Default: none.
    admin: 127.0.0.1:15020          TCP, plain HTTP: /metrics, /livez, /readyz, /explain,
                                    /decisions. Default: none.
    workloadAPI: /run/shop/spiffe.sock  Unix socket for the SPIFFE Workload API: the workload's own SVID with
                                    its key, JWT-SVIDs, and the trust bundles, for SPIFFE-aware
                                    programs. Default: none.
  workloadAPI:                      Who has the workload's identity, by user; the one that the sidecar
                                    runs as has.
    uids: [1001]                    Other users' numbers. Default: none.
    anyUid: false                   Everybody who reaches the socket, as on a volume of one Pod.
  advertise:
    inbound: 10.0.0.7:15008         What others are told, of a node proxy, when it differs from listen.
  captureFile: /run/isthmus/capture File to say in which addresses of other clusters' pods are to be captured,
                                    for isthmus-capture --to-file. Default: none.
  listeners:                        One local address for one service each.
  - service: checkout.shop          name.namespace. Required.
    port: 80                        The service's port. Required.
    protocol: tcp                   tcp, or udp for the service's port for datagrams. Default tcp.
    scope: clusterset               clusterset (exported copies, everywhere) or cluster (own copies).
                                    Default clusterset.
    listen: 127.0.0.1:9001          Address, of that protocol. Required.
    idle: 30s                       With udp: how long a flow (what one client's address and port sends
                                    and gets) is remembered that carries nothing. Default 30s.
  jwks:
    directory: /etc/isthmus/jwks    Directory with the key sets by which tokens of end users are verified,
                                    where an AccessPolicy or a QuotaPolicy names a file (jwksFile). Read
                                    again when they change. Default: there are none.
  drainGrace: 10s                   What requests in flight get to end after SIGTERM. Default 10s.
  log:
    level: info                     debug, info, warn or error. Default info.
    format: text                    text or json. Default text.
    requests: debug                 Level at which each request is logged. Default debug.

proxy, captured, dns, admin and listeners without a host (":15001") are on 127.0.0.1: whoever reaches
them speaks with the workload's identity. An address that others can reach is taken when it is
written out, and warned of.

SIGTERM and SIGINT drain: nothing new is taken, requests end within drainGrace. A second signal
ends the process at once. Traces are exported when OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_*
variables say where to.

Exit codes: 0 asked to stop, and drained; 1 failed; 2 usage or configuration.
`
