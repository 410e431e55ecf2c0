package install

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	relcommon "helm.sh/helm/v4/pkg/release/common"
	rel "helm.sh/helm/v4/pkg/release/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Helm keeps each revision of a release in a Secret of this type, with the release as gzipped JSON in base64.
const (
	releaseSecretType = "helm.sh/release.v1" //nolint:gosec // G101: a type, no credential
	releaseKey        = "release"
	// maxRelease bounds the JSON of a release that is read: ours is below 200 kB.
	maxRelease = 32 << 20
	// keptRevisions is how many of them are kept, as helm does by default.
	keptRevisions = 10
)

func releaseSecret(name string, revision int) string {
	return fmt.Sprintf("sh.helm.release.v1.%s.v%d", name, revision)
}

// release returns the last revision of a release, or nil where there is none.
func (e *Engine) release(ctx context.Context, name string) (*rel.Release, error) {
	all, err := e.revisions(ctx, name)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return decodeRelease(all[len(all)-1])
}

// inForce returns the last revision that was deployed, or the last where none was: the values of an attempt that failed are nobody's choice.
func (e *Engine) inForce(ctx context.Context, name string) (*rel.Release, error) {
	all, err := e.revisions(ctx, name)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	for _, s := range slices.Backward(all) {
		if s.Labels["status"] == relcommon.StatusDeployed.String() {
			return decodeRelease(s)
		}
	}
	return decodeRelease(all[len(all)-1])
}

// revisions returns the Secrets of a release, the oldest first.
func (e *Engine) revisions(ctx context.Context, name string) ([]corev1.Secret, error) {
	list, err := e.kube.CoreV1().Secrets(e.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "owner=helm,name=" + name})
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", name, err)
	}
	number := func(s corev1.Secret) int {
		n, _ := strconv.Atoi(s.Labels["version"])
		return n
	}
	slices.SortFunc(list.Items, func(a, b corev1.Secret) int { return number(a) - number(b) })
	return list.Items, nil
}

func decodeRelease(s corev1.Secret) (*rel.Release, error) {
	fail := func(err error) error { return fmt.Errorf("release in Secret %s/%s: %w", s.Namespace, s.Name, err) }
	packed, err := base64.StdEncoding.DecodeString(string(s.Data[releaseKey]))
	if err != nil {
		return nil, fail(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fail(err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxRelease))
	if err != nil {
		return nil, fail(err)
	}
	out := &rel.Release{}
	if err := json.Unmarshal(plain, out); err != nil {
		return nil, fail(err)
	}
	return out, nil
}

// record writes a revision, be it new or with another status.
func (e *Engine) record(ctx context.Context, r *rel.Release) error {
	plain, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err = w.Write(plain); err != nil {
		return err
	}
	if err = w.Close(); err != nil {
		return err
	}
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: releaseSecret(r.Name, r.Version), Namespace: e.Namespace,
			Labels: map[string]string{
				"name": r.Name, "owner": "helm", "status": r.Info.Status.String(), "version": strconv.Itoa(r.Version),
				"modifiedAt": strconv.FormatInt(time.Now().Unix(), 10),
			},
		},
		Type: releaseSecretType,
		Data: map[string][]byte{releaseKey: []byte(base64.StdEncoding.EncodeToString(packed.Bytes()))},
	}
	api := e.kube.CoreV1().Secrets(e.Namespace)
	_, err = api.Update(ctx, s, metav1.UpdateOptions{FieldManager: manager})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(ctx, s, metav1.CreateOptions{FieldManager: manager})
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", r.Name, err)
	}
	return nil
}

// supersede marks the revisions before one as such, and deletes the oldest.
func (e *Engine) supersede(ctx context.Context, name string, current int) error {
	all, err := e.revisions(ctx, name)
	if err != nil {
		return err
	}
	for i, s := range all {
		if s.Name == releaseSecret(name, current) {
			continue
		}
		if i < len(all)-keptRevisions {
			if err := e.kube.CoreV1().Secrets(e.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("release %s: %w", name, err)
			}
			continue
		}
		if s.Labels["status"] != relcommon.StatusDeployed.String() {
			continue
		}
		r, err := decodeRelease(s)
		if err != nil {
			return err
		}
		r.SetStatus(relcommon.StatusSuperseded, r.Info.Description)
		if err := e.record(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// objectsOf returns what a recorded release consists of.
func objectsOf(r *rel.Release) ([]*unstructured.Unstructured, error) {
	if r == nil {
		return nil, nil
	}
	return parse(map[string]string{"manifest": r.Manifest})
}

// put makes a release what a rendered chart says: applies it, removes what it no longer has, and records it. Nothing is written
// where nothing would change.
func (e *Engine) put(ctx context.Context, name string, r *Rendered, o Options) (changed bool, err error) {
	before, err := e.release(ctx, name)
	if err != nil {
		return false, err
	}
	old, err := objectsOf(before)
	if err != nil {
		return false, err
	}
	now := time.Now()
	next := &rel.Release{
		Name: name, Namespace: e.Namespace, Version: 1, Chart: r.Chart, Config: r.Values, Manifest: r.Manifest, ApplyMethod: string(rel.ApplyMethodServerSideApply),
		Info: &rel.Info{FirstDeployed: now, LastDeployed: now, Status: relcommon.StatusPendingInstall, Description: "isthmus is applying it"},
	}
	same := false
	if before != nil {
		next.Version, next.Info.FirstDeployed, next.Info.Status = before.Version+1, before.Info.FirstDeployed, relcommon.StatusPendingUpgrade
		same = before.Info.Status == relcommon.StatusDeployed && before.Manifest == r.Manifest && sameJSON(before.Config, r.Values)
	}
	// The record comes first: whatever happens from here on, what may be there is known.
	if !same {
		if err := e.record(ctx, next); err != nil {
			return false, err
		}
	}
	if err := e.inStages(ctx, name, r.Objects, o); err != nil {
		if !same {
			next.SetStatus(relcommon.StatusFailed, err.Error())
			_ = e.record(context.WithoutCancel(ctx), next) // the error is that of applying
		}
		return true, err
	}
	if same {
		return false, nil
	}
	for _, o := range gone(old, r.Objects) {
		if err := e.remove(ctx, name, o); err != nil {
			return true, err
		}
	}
	next.SetStatus(relcommon.StatusDeployed, "by isthmus")
	if err := e.record(ctx, next); err != nil {
		return true, err
	}
	return true, e.supersede(ctx, name, next.Version)
}

// inStages applies objects: what programs need, then control, the gateways, the node proxies, and webhooks last. Each stage is ready
// before the next begins, where that is waited for: a version that does not come up stops at its first program, and no node proxy looks
// for its identity while control is away.
func (e *Engine) inStages(ctx context.Context, release string, objects []*unstructured.Unstructured, o Options) error {
	objects = slices.Clone(objects)
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return stage(a) - stage(b) })
	for i, object := range objects {
		if _, err := e.apply(ctx, release, object, o.ForceConflicts, false); err != nil {
			return err
		}
		last := i == len(objects)-1 || stage(objects[i+1]) != stage(object)
		if component := object.GetLabels()[componentLabel]; last && workload(object) && o.Wait > 0 {
			if err := e.Wait(ctx, component); err != nil {
				return err
			}
		}
	}
	return nil
}

const componentLabel = "app.kubernetes.io/component"

func workload(o *unstructured.Unstructured) bool {
	return o.GetKind() == "StatefulSet" || o.GetKind() == "DaemonSet"
}

func stage(o *unstructured.Unstructured) int {
	switch component := o.GetLabels()[componentLabel]; {
	case strings.HasSuffix(o.GetKind(), "WebhookConfiguration"):
		return 5
	case !workload(o):
		return 0
	case component == "control":
		return 1
	case component == "gateway":
		return 2
	case component == "node":
		return 3
	default:
		return 4
	}
}

// gone returns the objects that are in old and not in now, the last applied first.
func gone(old, now []*unstructured.Unstructured) []*unstructured.Unstructured {
	stays := map[string]bool{}
	for _, o := range now {
		stays[title(o)] = true
	}
	var out []*unstructured.Unstructured
	for _, o := range slices.Backward(old) {
		if !stays[title(o)] {
			out = append(out, o)
		}
	}
	return out
}

// remove deletes an object if it is the release's.
func (e *Engine) remove(ctx context.Context, release string, o *unstructured.Unstructured) error {
	is, err := e.live(ctx, o)
	if err != nil || is == nil || !e.ours(release, is) {
		return err
	}
	uid := is.GetUID()
	policy := metav1.DeletePropagationBackground
	err = e.at(o).Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: &policy})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("%s: %w", title(o), err)
	}
	return nil
}

func sameJSON(a, b any) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && (bytes.Equal(x, y) || empty(x) && empty(y))
}

func empty(b []byte) bool { return string(b) == "null" || string(b) == "{}" }
