package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
)

// stateWorld is an API server, and a clock.
type stateWorld struct {
	api  client.WithWatch
	now  time.Time
	fail error // of the next update, which is made all the same
}

func newStateWorld() *stateWorld {
	w := &stateWorld{now: time.Unix(1e9, 0)}
	w.api = interceptor.NewClient(fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(mapper).Build(), interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			err := c.Update(ctx, o, opts...)
			if w.fail != nil {
				err, w.fail = w.fail, nil
			}
			return err
		},
	})
	return w
}

// pod is a control's Pod with a state directory.
func (w *stateWorld) pod(t *testing.T, dir string) *State {
	t.Helper()
	k := &Kube{cfg: Config{Namespace: "isthmus-system", Now: func() time.Time { return w.now }}.withDefaults(), writer: &writer{writes: w.api}}
	s, err := k.RestoreState(t.Context(), StateConfig{
		Dir: dir, Secret: "state", Keys: []string{"keys"}, Fast: []string{"roster.json", "addresses.json"}, Slow: []string{"memory"}, ConfigMap: "roots", Public: "roots.pem",
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = atomicfile.Write(path, []byte(content), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (w *stateWorld) secret(t *testing.T) *corev1.Secret {
	t.Helper()
	s := new(corev1.Secret)
	if err := w.api.Get(t.Context(), client.ObjectKey{Namespace: "isthmus-system", Name: "state"}, s); err != nil {
		t.Fatal(err)
	}
	return s
}

func keep(t *testing.T, s *State, all bool) {
	t.Helper()
	if err := s.Keep(t.Context(), all); err != nil {
		t.Fatal(err)
	}
}

// TestStateMoves: what one Pod had, the next one has.
func TestStateMoves(t *testing.T) {
	w, first := newStateWorld(), t.TempDir()
	s := w.pod(t, first)
	large := strings.Repeat("a cut of catalogs ", 1000)
	put(t, first, "keys/root.key", "secret")
	put(t, first, "memory/peers/0a1b/cut", large)
	put(t, first, "roster.json", "{}")
	put(t, first, "roots.pem", "PEM")
	put(t, first, "lock", "")                          // not kept: not named
	put(t, first, "keys/.root.key.123", "half")        // nor what is being written
	put(t, first, "memory/own.tmp-77", "half")         // by whoever
	put(t, first, "memory/peers/0a1b/cut.corrupt", "") // kept, for somebody to look at
	keep(t, s, true)

	second := t.TempDir()
	w.pod(t, second)
	want := map[string]string{"keys/root.key": "secret", "memory/peers/0a1b/cut": large, "roster.json": "{}", "memory/peers/0a1b/cut.corrupt": ""}
	if got := contents(t, second); !maps.Equal(got, want) {
		t.Errorf("the next Pod has %q", slices.Sorted(maps.Keys(got)))
	}
	if info, err := os.Stat(filepath.Join(second, "keys/root.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key is %v, %v", info.Mode(), err)
	}
	roots := new(corev1.ConfigMap)
	if err := w.api.Get(t.Context(), client.ObjectKey{Namespace: "isthmus-system", Name: "roots"}, roots); err != nil || roots.Data["roots.pem"] != "PEM" {
		t.Errorf("the roots are %q, %v", roots.Data, err)
	}
	for _, o := range []client.Object{roots, w.secret(t)} {
		if o.GetLabels()[ManagedByLabel] != ManagedBy {
			t.Errorf("%s has the labels %v", o.GetName(), o.GetLabels())
		}
	}
}

// TestStateDirectoryCounts: a container that is started again in its Pod has newer files than the Secret.
func TestStateDirectoryCounts(t *testing.T) {
	w, dir := newStateWorld(), t.TempDir()
	s := w.pod(t, dir)
	put(t, dir, "roster.json", "old")
	keep(t, s, true)
	put(t, dir, "roster.json", "new")
	s = w.pod(t, dir)
	if got := contents(t, dir)["roster.json"]; got != "new" {
		t.Errorf("it holds %q", got)
	}
	keep(t, s, false)
	if got := string(w.secret(t).Data["roster.json"]); got != "new" {
		t.Errorf("the Secret holds %q", got)
	}
}

// TestStateSlowly: keys are written when they change, what changes all the time once a minute and at the end; nothing without need.
func TestStateSlowly(t *testing.T) {
	w, dir := newStateWorld(), t.TempDir()
	s := w.pod(t, dir)
	holds := func(key, want string) {
		t.Helper()
		if got := string(w.secret(t).Data[key]); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	put(t, dir, "keys/a.key", "1")
	put(t, dir, "memory/own", "1")
	keep(t, s, true)
	version := w.secret(t).ResourceVersion
	put(t, dir, "memory/own", "2")
	keep(t, s, false)
	holds("memory_own", "1")
	if w.secret(t).ResourceVersion != version {
		t.Error("written without need")
	}
	put(t, dir, "keys/a.key", "2")
	keep(t, s, false)
	holds("keys_a.key", "2")
	holds("memory_own", "1")
	w.now = w.now.Add(slowly)
	keep(t, s, false)
	holds("memory_own", "2")
	put(t, dir, "memory/own", "3")
	put(t, dir, "keys/b.key", "1") // the one that takes its place
	if err := os.Remove(filepath.Join(dir, "keys/a.key")); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ended); err != nil {
		t.Error(err)
	}
	holds("memory_own", "3")
	if _, ok := w.secret(t).Data["keys_a.key"]; ok {
		t.Error("a key that is gone is kept")
	}
}

// TestStateTaken: of two controls that use one Secret, the one that comes second to write ends.
func TestStateTaken(t *testing.T) {
	w, one, two := newStateWorld(), t.TempDir(), t.TempDir()
	a := w.pod(t, one)
	b := w.pod(t, two)
	put(t, one, "keys/a.key", "a")
	put(t, two, "keys/a.key", "b")
	keep(t, a, true)
	if err := b.Keep(t.Context(), true); !errors.Is(err, ErrStateTaken) {
		t.Errorf("both made the Secret: %v", err)
	}
	c := w.pod(t, t.TempDir()) // the next Pod, while the first still runs where nobody sees it
	put(t, c.cfg.Dir, "roster.json", "c")
	keep(t, c, true)
	put(t, one, "roster.json", "a")
	if err := a.Keep(t.Context(), false); !errors.Is(err, ErrStateTaken) {
		t.Errorf("both wrote the Secret: %v", err)
	}
}

// TestStateIsOurs: labels that somebody puts on the Secret, an answer that was lost, and a Secret that was deleted are no other control.
func TestStateIsOurs(t *testing.T) {
	w, dir := newStateWorld(), t.TempDir()
	s := w.pod(t, dir)
	put(t, dir, "roster.json", "1")
	keep(t, s, true)

	touched := w.secret(t)
	touched.Labels["backup"] = "yes"
	if err := w.api.Update(t.Context(), touched); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "roster.json", "2")
	for range 2 { // the first finds that it was touched
		_ = s.Keep(t.Context(), false)
	}
	if now := w.secret(t); string(now.Data["roster.json"]) != "2" || now.Labels["backup"] != "yes" {
		t.Errorf("after a label: %q, %v", now.Data, now.Labels)
	}

	put(t, dir, "roster.json", "3")
	w.fail = errors.New("the connection was lost")
	if err := s.Keep(t.Context(), false); err == nil {
		t.Error("no error")
	}
	keep(t, s, false)
	put(t, dir, "roster.json", "4")
	keep(t, s, false)

	if err := w.api.Delete(t.Context(), w.secret(t)); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "roster.json", "5")
	_ = s.Keep(t.Context(), false)
	keep(t, s, false)
	if got := string(w.secret(t).Data["roster.json"]); got != "5" {
		t.Errorf("after a deletion: %q", got)
	}
}

// TestStateTooLarge: keys get the room.
func TestStateTooLarge(t *testing.T) {
	w, dir := newStateWorld(), t.TempDir()
	s := w.pod(t, dir)
	random := make([]byte, maxSecret-1000)
	for i, x := 0, uint32(1); i < len(random); i++ { // does not compress
		x = x*1664525 + 1013904223
		random[i] = byte(x >> 24)
	}
	put(t, dir, "keys/root.key", strings.Repeat("k", 2000))
	put(t, dir, "memory/large", string(random))
	put(t, dir, "memory/small", "s")
	put(t, dir, "addresses.json", strings.Repeat("x", maxFile+1)) // however much peers make it, the rest is kept
	keep(t, s, true)
	data := w.secret(t).Data
	if len(data["keys_root.key"]) != 2000 || string(data["memory_small"]) != "s" || data["memory_large.gz"] != nil || data["addresses.json.gz"] != nil {
		t.Errorf("kept: %v", slices.Sorted(maps.Keys(data)))
	}
	put(t, dir, "addresses.json", string(random)+string(random[:2000]))
	put(t, dir, "keys/another.key", "k")
	keep(t, s, true)
	if data = w.secret(t).Data; string(data["keys_another.key"]) != "k" || data["addresses.json.gz"] != nil {
		t.Errorf("kept: %v", slices.Sorted(maps.Keys(data)))
	}
	w.pod(t, t.TempDir())
	w.pod(t, dir) // what is too large does not keep the container from starting again

	put(t, dir, "keys/huge.key", string(random)+string(random[:2000]))
	if err := s.Keep(t.Context(), true); err == nil || string(w.secret(t).Data["keys_another.key"]) != "k" {
		t.Errorf("keys that do not fit: %v", err)
	}
}

// TestStateRefuses what could write elsewhere, or is damaged.
func TestStateRefuses(t *testing.T) {
	for _, key := range []string{".._roster.json", "_etc_passwd", "keys_..", "", "A", ".hidden", "keys__a"} {
		if name, _, err := unpack(key, nil); err == nil {
			t.Errorf("%q became %q", key, name)
		}
	}
	if _, _, err := unpack("roster.json.gz", []byte("no gzip")); err == nil {
		t.Error("took what is no gzip")
	}
	for _, name := range []string{"roster.json", "keys/signing-12.key", "memory/peers/0a/cut"} {
		for _, data := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("y"), 10000)} {
			key, value := pack(name, data)
			if back, got, err := unpack(key, value); back != name || !bytes.Equal(got, data) || err != nil {
				t.Errorf("%s, %d bytes: came back as %s, %d bytes, %v", name, len(data), back, len(got), err)
			}
		}
	}
}

// TestStateAtFirst: that there is no Secret yet is an answer, also before everything else was read, when a kind that is missing is waited for.
func TestStateAtFirst(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, filepath.Base(r.URL.Path)).Status())
	}))
	defer server.Close()
	k, err := New(Config{Kubeconfig: kubeconfigOf(t, server.URL), Context: "x", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer k.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := k.RestoreState(ctx, StateConfig{Dir: t.TempDir(), Secret: "state", Keys: []string{"keys"}}); err != nil || ctx.Err() != nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
}

// TestStateKeepsKeys: a directory that somebody has emptied must not empty the Secret.
func TestStateKeepsKeys(t *testing.T) {
	w, dir := newStateWorld(), t.TempDir()
	put(t, dir, "keys/root.key", "secret")
	put(t, dir, "roster.json", "{}")
	s := w.pod(t, dir)
	if err := s.Keep(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "roster.json", "{\"changed\":true}")
	if err := s.Keep(t.Context(), true); err == nil || !strings.Contains(err.Error(), "keys is gone") {
		t.Errorf("Keep without keys: %v, want a refusal that names them", err)
	}
	next := t.TempDir()
	w.pod(t, next)
	if got := contents(t, next); got["keys/root.key"] != "secret" || got["roster.json"] != "{}" {
		t.Errorf("the next Pod begins with %v, want all as it was kept", got)
	}
}

// FuzzUnpack: whatever a Secret's key is, the file it names lies in the state directory, and goes back into the same key.
func FuzzUnpack(f *testing.F) {
	for _, name := range []string{"roster.json", "keys/signing-12.key", "memory/peers/0a/cut"} {
		for _, data := range [][]byte{[]byte("x"), bytes.Repeat([]byte("y"), 10000)} {
			key, value := pack(name, data)
			f.Add(key, value)
		}
	}
	f.Add(".._roster.json", []byte("x"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		name, data, err := unpack(key, value)
		if err != nil {
			return
		}
		if !filepath.IsLocal(name) || len(data) > maxFile {
			t.Fatalf("%q: %s, %d bytes", key, name, len(data))
		}
		again, packed := pack(name, data)
		if back, got, err := unpack(again, packed); back != name || !bytes.Equal(got, data) || err != nil {
			t.Fatalf("%q: %s came back as %s, %v", key, name, back, err)
		}
	})
}
