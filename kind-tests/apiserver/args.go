package apiserver

// serviceCIDRs are where Services get their addresses from, in every cluster the same, as clusters that were not planned together
// have them; with both families, so that a Service may have either or both.
const serviceCIDRs = "10.96.0.0/16,fd00:10:96::/112"

func (c *Cluster) etcdArgs() []string {
	client := "http://" + c.store
	const nobody = "http://127.0.0.1:0" // there is no second member; the port is whichever is free
	return []string{
		"--name", c.config.Name, "--data-dir", "etcd",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", nobody, "--initial-advertise-peer-urls", nobody, "--initial-cluster", c.config.Name + "=" + nobody,
		"--unsafe-no-fsync", // the machine's power is not what is tried here
		"--log-level", "warn",
	}
}

func (c *Cluster) serverArgs() []string {
	host, port := split(c.server)
	return []string{
		"--etcd-servers", "http://" + c.store,
		"--bind-address", host, "--secure-port", port, "--advertise-address", host,
		"--cert-dir", certDir, // it makes itself a certificate there, and keeps it
		"--token-auth-file", tokenFile, "--authorization-mode", "RBAC",
		"--service-cluster-ip-range", serviceCIDRs,
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", accountKey, "--service-account-signing-key-file", accountKey,
		"--disable-admission-plugins", "ServiceAccount", // there are no pods to give accounts to
		"--endpoint-reconciler-type", "none", // a loopback address is no endpoint
	}
}

// controllerArgs leave out all that waits for nodes and pods.
func (c *Cluster) controllerArgs() []string {
	return []string{
		"--kubeconfig", c.Kubeconfig(),
		"--controllers", "namespace-controller,garbage-collector-controller,endpointslice-controller",
		"--secure-port", "0", "--leader-elect=false",
	}
}
