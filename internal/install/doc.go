// Package install puts Isthmus into a Kubernetes cluster, changes it, and takes it out again without a trace.
//
// What it applies are the charts of deploy/charts, rendered by Helm's own engine. They are written by server-side apply under Helm's
// names: labels, annotations and the release record are those of a Helm release, so that helm sees it too and may go on with it. What
// Helm's own actions bring along (an OCI client, SQL drivers, a WebAssembly runtime) is left out.
//
// What a chart can't know is here: whether the cluster fits (Preflight), its name, the stub in CoreDNS, what a Pod that is not ready
// waits for, and what is left at the end.
package install
