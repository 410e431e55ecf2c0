package kube

import (
	"context"
	"net/http"
	"reflect"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	meshv1alpha1 "github.com/isthmus-mesh/isthmus/api/mesh/v1alpha1"
)

// loops that an event wakes.
const (
	toReader = 1 << iota
	toWriter
)

// kind is a kind that is watched.
type kind struct {
	object client.Object
	wakes  int
}

// kinds are all that is watched.
var kinds = []kind{
	{&corev1.Service{}, toReader},
	{&discoveryv1.EndpointSlice{}, toReader | toWriter}, // see sliceWakes
	{&corev1.Pod{}, toReader},
	{&corev1.Node{}, toReader},
	{metadataOf("Namespace"), toWriter},
	{&mcsv1beta1.ServiceExport{}, toReader | toWriter},
	{&mcsv1beta1.ServiceImport{}, toWriter},
	{&meshv1alpha1.Workload{}, toReader},
	{&meshv1alpha1.ClusterPeer{}, toReader},
	{&meshv1alpha1.FailoverPolicy{}, toReader | toWriter},
	{&meshv1alpha1.FederatedTrustDomain{}, toReader},
	{&meshv1alpha1.AccessPolicy{}, toReader | toWriter},
	{&meshv1alpha1.QuotaPolicy{}, toReader | toWriter},
}

// metadataOf is a core kind of which only the metadata is of interest.
func metadataOf(kind string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: kind}}
}

var (
	scheme = newScheme()
	mapper = newMapper()
)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, authenticationv1.AddToScheme, admissionregistrationv1.AddToScheme, mcsv1beta1.Install, meshv1alpha1.AddToScheme, metav1.AddMetaToScheme,
	} {
		utilruntime.Must(add(s)) // fails only where two kinds have one name
	}
	return s
}

// newMapper says under which path each kind is. It is fixed, so that a start does not depend on discovery, and a kind whose CRD is not
// installed yet is waited for as an API server is.
func newMapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	core := corev1.SchemeGroupVersion
	mcs := schema.GroupVersion{Group: mcsv1beta1.GroupName, Version: mcsv1beta1.GroupVersion.Version}
	for _, r := range []struct {
		gv     schema.GroupVersion
		kind   string
		plural string
		scope  meta.RESTScope
	}{
		{core, "Service", "services", meta.RESTScopeNamespace},
		{core, "Pod", "pods", meta.RESTScopeNamespace},
		{core, "Node", "nodes", meta.RESTScopeRoot},
		{core, "Namespace", "namespaces", meta.RESTScopeRoot},
		{authenticationv1.SchemeGroupVersion, "TokenReview", "tokenreviews", meta.RESTScopeRoot},                       // created, not watched
		{admissionregistrationv1.SchemeGroupVersion, webhookKind, "mutatingwebhookconfigurations", meta.RESTScopeRoot}, // one is kept, none is watched
		{core, "Event", "events", meta.RESTScopeNamespace},                                                             // written, not watched
		{core, "Secret", "secrets", meta.RESTScopeNamespace},                                                           // State's one
		{core, "ConfigMap", "configmaps", meta.RESTScopeNamespace},                                                     // State's one
		{discoveryv1.SchemeGroupVersion, "EndpointSlice", "endpointslices", meta.RESTScopeNamespace},
		{mcs, "ServiceExport", "serviceexports", meta.RESTScopeNamespace},
		{mcs, "ServiceImport", "serviceimports", meta.RESTScopeNamespace},
		{meshv1alpha1.GroupVersion, "Workload", "workloads", meta.RESTScopeNamespace},
		{meshv1alpha1.GroupVersion, "ClusterPeer", "clusterpeers", meta.RESTScopeRoot},
		{meshv1alpha1.GroupVersion, failoverKind, "failoverpolicies", meta.RESTScopeNamespace},
		{meshv1alpha1.GroupVersion, domainKind, "federatedtrustdomains", meta.RESTScopeRoot},
		{meshv1alpha1.GroupVersion, accessKind, "accesspolicies", meta.RESTScopeNamespace},
		{meshv1alpha1.GroupVersion, quotaKind, "quotapolicies", meta.RESTScopeNamespace},
	} {
		m.AddSpecific(r.gv.WithKind(r.kind), r.gv.WithResource(r.plural), r.gv.WithResource(strings.ToLower(r.kind)), r.scope)
	}
	return m
}

func newCaches(api *rest.Config, over *http.Client, failed toolscache.WatchErrorHandlerWithContext) (cache.Cache, error) {
	return cache.New(api, cache.Options{
		HTTPClient: over, Scheme: scheme, Mapper: mapper,
		ReaderFailOnMissingInformer:  true, // a kind that is read without being among kinds is a mistake
		DefaultTransform:             trim,
		DefaultWatchErrorHandler:     failed,
		DefaultUnsafeDisableDeepCopy: new(true), // what is read is never changed
	})
}

// listen starts to watch every kind. It does not wait for the first answer.
func (k *Kube) listen(ctx context.Context) error {
	for _, kind := range kinds {
		informer, err := k.caches.GetInformer(ctx, kind.object, cache.BlockUntilSynced(false))
		if err != nil {
			return err
		}
		wake := func(o any) {
			wakes := kind.wakes
			if s, is := o.(*discoveryv1.EndpointSlice); is {
				wakes = sliceWakes(s)
			}
			if wakes&toReader != 0 {
				poke(k.reader.wake)
			}
			if wakes&toWriter != 0 {
				poke(k.writer.wake)
			}
		}
		if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc: func(o any) {
				if !isOutside(o) {
					wake(o)
				}
			},
			DeleteFunc: func(o any) {
				if !isOutside(o) {
					wake(o)
				}
			},
			UpdateFunc: func(before, after any) {
				idle := isIdle(before, after) || isOutside(before) && isOutside(after)
				if !idle {
					wake(before) // what it was and what it is may be of interest to different loops
					wake(after)
				}
			},
		}); err != nil {
			return err
		}
	}
	return nil
}

// sliceWakes returns whom an EndpointSlice is of interest to: those of Services change all the time, and the writer has no part in them.
func sliceWakes(s *discoveryv1.EndpointSlice) int {
	switch {
	case isImported(s):
		return toWriter
	case isElsewhere(*s):
		return toReader
	}
	return toReader | toWriter
}

// isIdle reports whether an update changes nothing that is looked at: a Node says every few minutes how it does, and a namespace is there or
// not.
func isIdle(before, after any) bool {
	switch a := before.(type) {
	case *metav1.PartialObjectMetadata:
		b, still := after.(*metav1.PartialObjectMetadata)
		return still && a.UID == b.UID && reflect.DeepEqual(a.Labels, b.Labels) && a.DeletionTimestamp.Equal(b.DeletionTimestamp)
	case *corev1.Node:
		b, still := after.(*corev1.Node)
		return still && a.UID == b.UID && reflect.DeepEqual(a.Labels, b.Labels) && reflect.DeepEqual(a.Spec, b.Spec) && reflect.DeepEqual(a.Status, b.Status)
	}
	return false
}

// isOutside reports whether an object is a Pod without a sidecar: most of what happens in a cluster happens to these.
func isOutside(o any) bool {
	p, isPod := o.(*corev1.Pod)
	return isPod && p.Annotations == nil
}
