package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/api/admin"
	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
	"github.com/isthmus-mesh/isthmus/control/manifest"
	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
)

// fieldManager owns what the CLI applies.
const fieldManager = "isthmus"

// errNoPeer is a peer that is not declared.
var errNoPeer = errors.New("no such peer")

// peerStore is where a cluster's ClusterPeers are declared.
type peerStore interface {
	// list returns those that are declared.
	list(ctx context.Context) ([]admin.Introduction, error)
	// put declares one, and says where it stands. force takes it from others who declare it too.
	put(ctx context.Context, peer admin.Introduction, force bool) (where string, err error)
	// remove says where it stood. The error is errNoPeer where it did not.
	remove(ctx context.Context, cluster string) (where string, err error)
}

// peerStoreOf returns where the ClusterPeers of a control's cluster are.
func peerStoreOf(t target, status admin.Status) (peerStore, error) {
	if t.kube == nil {
		return folderPeers{status}, nil
	}
	d, err := t.kube.Dynamic()
	if err != nil {
		return nil, err
	}
	return kubePeers{t.kube, d.Resource(clusterPeers)}, nil
}

var clusterPeers = schema.GroupVersionResource{Group: "isthmus.dev", Version: "v1alpha1", Resource: "clusterpeers"}

// kubePeers are those of an API server.
type kubePeers struct {
	cluster *kubeaccess.Cluster
	peers   dynamic.ResourceInterface
}

// explain adds what to do to an error of the API server.
func (k kubePeers) explain(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return k.cluster.Explain(doing, fmt.Errorf("the kind ClusterPeer is not there: the CRDs of Isthmus are missing; install it: isthmus install --context %s: %w",
			shellQuote(k.cluster.Context), err))
	case apierrors.IsConflict(err):
		return k.cluster.Explain(doing, fmt.Errorf("somebody else declares it too; change it there, or take it over with --replace: %w", err))
	default:
		return k.cluster.Explain(doing, err)
	}
}

func (k kubePeers) list(ctx context.Context) ([]admin.Introduction, error) {
	all, err := k.peers.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, k.explain("list clusterpeers", err)
	}
	var out []admin.Introduction
	for i := range all.Items {
		var p meshv1alpha1.ClusterPeer
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(all.Items[i].Object, &p); err != nil {
			return nil, k.explain("read clusterpeer "+all.Items[i].GetName(), err)
		}
		out = append(out, admin.Introduction{
			Cluster: p.Name, TrustDomain: p.Spec.TrustDomain, RootFingerprint: p.Spec.RootFingerprint,
			BusKey: p.Spec.Bus.Key, BusURLs: p.Spec.Bus.URLs, PodCIDRs: p.Spec.PodCIDRs, Namespaces: p.Spec.Namespaces,
		})
	}
	return out, nil
}

func (k kubePeers) put(ctx context.Context, peer admin.Introduction, force bool) (string, error) {
	urls := make([]any, len(peer.BusURLs))
	for i, u := range peer.BusURLs {
		urls[i] = u
	}
	spec := map[string]any{
		"trustDomain": peer.TrustDomain, "rootFingerprint": peer.RootFingerprint, "bus": map[string]any{"key": peer.BusKey, "urls": urls},
	}
	for field, entries := range map[string][]string{"podCIDRs": peer.PodCIDRs, "namespaces": peer.Namespaces} {
		if len(entries) == 0 {
			continue
		}
		set := make([]any, len(entries))
		for i, e := range entries {
			set[i] = e
		}
		spec[field] = set
	}
	object := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": peer.Cluster}, "spec": spec}}
	object.SetAPIVersion(clusterPeers.GroupVersion().String())
	object.SetKind("ClusterPeer")
	_, err := k.peers.Apply(ctx, peer.Cluster, object, metav1.ApplyOptions{FieldManager: fieldManager, Force: force})
	return fmt.Sprintf("ClusterPeer %s (context %s)", peer.Cluster, k.cluster.Context), k.explain("apply clusterpeer "+peer.Cluster, err)
}

func (k kubePeers) remove(ctx context.Context, cluster string) (string, error) {
	err := k.peers.Delete(ctx, cluster, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return "", errNoPeer
	}
	return fmt.Sprintf("ClusterPeer %s (context %s)", cluster, k.cluster.Context), k.explain("delete clusterpeer "+cluster, err)
}

// folderPeers are those of a folder of manifests, as its control says; it is on this machine, if it can be written to.
type folderPeers struct{ status admin.Status }

func (f folderPeers) list(context.Context) ([]admin.Introduction, error) {
	var out []admin.Introduction
	for _, p := range f.status.Peers {
		out = append(out, admin.Introduction{
			Cluster: p.Cluster, TrustDomain: p.TrustDomain, RootFingerprint: p.RootFingerprint, BusKey: p.BusKey, BusURLs: p.BusURLs, PodCIDRs: p.PodCIDRs, Namespaces: p.Namespaces,
		})
	}
	return out, nil
}

// path is the manifest that holds one peer alone.
func (f folderPeers) path(cluster string) string {
	return filepath.Join(f.status.Manifests.Source, "peer-"+cluster+".yaml")
}

// byHand is a folder that the verb can't write to.
func (f folderPeers) byHand(err error, what, text string) error {
	return advised{
		fmt.Errorf("the manifests of %s are in %s: %w", f.status.Cluster, cmp.Or(f.status.Manifests.Source, "a place that it does not name"), err),
		what + text,
	}
}

// declaredElsewhere reports whether control knows the peer from another manifest than the one at path.
func (f folderPeers) declaredElsewhere(cluster string) (bool, error) {
	known := false
	for _, p := range f.status.Peers {
		known = known || p.Cluster == cluster
	}
	b, err := os.ReadFile(f.path(cluster))
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return false, err
	}
	for _, o := range manifest.Parse(f.path(cluster), b).Objects {
		if o.Peer == nil || o.Peer.Cluster.String() != cluster {
			return true, nil // it holds other things too
		}
	}
	return false, nil
}

func (f folderPeers) put(_ context.Context, peer admin.Introduction, _ bool) (string, error) {
	text := clusterPeer(peer, "")
	byHand := "Put this among its manifests yourself:\n\n"
	if info, err := os.Stat(f.status.Manifests.Source); err != nil || !info.IsDir() || !filepath.IsAbs(f.status.Manifests.Source) {
		return "", f.byHand(errors.New("that is no folder on this machine"), byHand, text)
	}
	elsewhere, err := f.declaredElsewhere(peer.Cluster)
	if err != nil {
		return "", f.byHand(err, byHand, text)
	}
	if elsewhere {
		return "", f.byHand(fmt.Errorf("%s stands in another file than peer-%[1]s.yaml, or that file holds more", peer.Cluster),
			"Change it there to:\n\n", text)
	}
	if err := atomicfile.Write(f.path(peer.Cluster), []byte(text), 0o644); err != nil {
		return "", f.byHand(err, byHand, text)
	}
	return f.path(peer.Cluster), nil
}

func (f folderPeers) remove(_ context.Context, cluster string) (string, error) {
	elsewhere, err := f.declaredElsewhere(cluster)
	if err == nil && elsewhere {
		return "", f.byHand(fmt.Errorf("%s stands in another file than peer-%[1]s.yaml, or that file holds more", cluster), "Take it out there.", "")
	}
	if err == nil {
		err = os.Remove(f.path(cluster))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", errNoPeer
	}
	if err != nil {
		return "", f.byHand(err, "Remove it there.", "")
	}
	return f.path(cluster), nil
}
