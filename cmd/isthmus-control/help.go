package main

const help = `isthmus-control is the control plane of one cluster of a mesh.

Usage:
  isthmus-control --config FILE
  isthmus-control --help | --version

The file is YAML. Unknown and duplicate keys are refused, with their line. Paths are
relative to the working directory, addresses are host:port. ${NAME} stands for the value of
that environment variable.

  cluster: eu                       Name of this cluster, unique in the clusterset: an RFC 1123 label. Required.
  trustDomain: eu.example           The cluster's SPIFFE trust domain; one of its own for each cluster. Required.
  region: europe                    Where the cluster is. Default: not known.
  zone: europe-1                    Where what names no zone of its own is. Default: not known.
  manifests: /etc/isthmus/manifests Folder of manifests (*.yaml, *.yml, *.json, also in folders below). It is watched;
                                    what became of the exports is written to .status in it. This, or kubernetes.
  kubernetes:                       The cluster is a Kubernetes cluster: what is declared there counts, and what became of it
                                    is written back there. {} is the cluster that control runs in. This, or manifests.
    kubeconfig: /etc/isthmus/kubeconfig  File with the credentials. Default: those of control's own Pod.
    context: eu                     Context of the kubeconfig. Default: its current one.
    stateSecret: isthmus-control-state  Secret in control's own namespace that keeps the state directory, which may then be
                                    an emptyDir: what the directory holds counts, and an empty one is filled from the
                                    Secret. Default: none.
    trustBundle: isthmus-trust-bundle  ConfigMap there with trust-bundle.pem, for gateways and node proxies. Default: none.
    injection:                      The admission webhook that puts sidecars into Pods. Default: none.
      listen: 0.0.0.0:9443          TCP, HTTPS: the API server calls it. Required.
      names: [isthmus-control.isthmus-system.svc]  DNS names that it looks for in the certificate, which is of control's
                                    own authority. Required.
      settings: /etc/isthmus/injection.yaml  File that says what sidecars are made from; docs/injection.md. Required.
      webhook: isthmus-injection    MutatingWebhookConfiguration whose caBundle control keeps right. Default: none.
  authority:                        Whose CA issues the SVIDs of the trust domain. Default: one that control makes and keeps.
    files:                          An intermediate CA as files, PEM, as cert-manager writes them. They are read anew when they
                                    change; what can't be used leaves the ones before in use. This, or workloadAPI.
      certificate: /etc/isthmus/ca/tls.crt  The CA's certificate and what leads from it to a root. Required.
      key: /etc/isthmus/ca/tls.key  Its key, readable by this user (and group) alone. Required.
      bundle: /etc/isthmus/ca/ca.crt  The roots. Required.
    workloadAPI: unix:///run/spire/agent.sock  SPIFFE Workload API of somebody else that gives control and its programs their
                                    SVIDs: control issues none, and programs name the socket in identity.workloadAPI.
  state: /var/lib/isthmus/control   Directory for keys and state, made if need be, readable by this user alone, and used
                                    by one control at a time. trust-bundle.pem in it is what gateways and sidecars
                                    are started with. Losing it means a new authority and introducing the cluster
                                    to its peers anew: back it up. Required.
  listen: 10.0.0.5:7400             gRPC, for the cluster's own gateways and sidecars. Required.
  bus:
    listen: 0.0.0.0:4222            NATS over TLS, for the control planes of peer clusters. Required.
    advertise:                      URLs that peers are told to dial. Default: the address of listen, where it names a host.
      - tls://control-eu.example.net:4222
  admin:
    socket: /run/isthmus/control.sock  Unix socket for the isthmus CLI. Whoever opens it administers the cluster: it is
                                    readable by this user alone. Default: control.sock in the state directory.
    listen: 127.0.0.1:7481          TCP, plain HTTP: /metrics, /livez, /readyz. Default: none.
  workloadAPI:
    socket: /run/isthmus/workload.sock  Unix socket for the SPIFFE Workload API: processes of this machine get the identities of
                                    the Workloads that name their user (spec.unix.uid). Every user may open it. Not with
                                    kubernetes, where the sidecars serve it. Default: none.
  federationEndpoint:               Serves the trust domain's bundle to everybody, for other implementations of SPIFFE
                                    (SPIFFE federation endpoint). Default: none.
    listen: 0.0.0.0:8443            TCP, HTTPS. Required.
    profile: https_spiffe           https_spiffe: it shows control's SVID, spiffe://<trust domain>/isthmus/control.
                                    https_web: it shows the certificate. Required.
    certificate: /etc/isthmus/tls.crt  Chain (PEM) for its DNS name, with https_web. Read again when it changes.
    key: /etc/isthmus/tls.key       Its key (PEM), not readable by everybody.
  clusterSetCIDR: 241.0.0.0/8       Where the addresses of imported services come from. Default 241.0.0.0/8.
  podCIDRs: [10.1.0.0/16]           The addresses of the cluster's pods, told to peers. Default: those that its Kubernetes Nodes say.
  peerPodCIDRs: [10.0.0.0/8]        Which addresses peers may say their pods have: within them, headless copies of other clusters are
                                    called by their own addresses, where nobody else has these. [] turns that off.
                                    Default: the private ranges of IPv4 and IPv6.
  nodeProxies: [node-0]             Names of the node proxies that may join; they stand in for copies without a sidecar.
                                    Default: none.
  log:
    level: info                     debug, info, warn or error. Default info.
    format: text                    text or json. Default text.

A manifest that is wrong is logged with its line and listed by "isthmus status"; its last good version stays
in force. While the Kubernetes API server is away, the last state stays in force. Gateways and sidecars keep serving while control is stopped. SIGTERM and SIGINT stop it; a second
signal ends the process at once. Traces are exported when OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_*
variables say where to.

Exit codes: 0 asked to stop; 1 failed; 2 usage or configuration.
`
