package kube

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/isthmus-mesh/isthmus/internal/atomicfile"
)

const (
	// glance is how often the state directory is looked at.
	glance = time.Second
	// slowly is how often the slow files are written: a Secret is no log, and how far peers have come changes every ten seconds.
	slowly = time.Minute
	// maxSecret bounds what is kept, in bytes: a Secret holds 1 MiB, names and metadata included.
	maxSecret = 900 << 10
	// lastWords bounds the write at the end.
	lastWords = 10 * time.Second
	// packed is the ending of keys whose value is compressed.
	packed = ".gz"
	// steadyTries is how often the directory is read until two readings are alike.
	steadyTries = 5
)

// ErrStateTaken says that another control writes the same Secret: one of the two speaks in the other's name, and must end.
var ErrStateTaken = errors.New("another control keeps its state in the same Secret")

// StateConfig says what of a control's state directory is kept, and where.
type StateConfig struct {
	Dir       string   // the state directory
	Secret    string   // name of the Secret, in control's own namespace
	Keys      []string // files and folders of Dir without which the rest is worth nothing; all of them are kept, as soon as they change
	Fast      []string // those that are kept as soon as they change, as far as there is room
	Slow      []string // those that are kept once a minute, and at the end, in the room that is left
	ConfigMap string   // name of the ConfigMap for the file Public; empty: none
	Public    string   // a file of Dir that others are to have: the trust domain's roots
}

// State keeps a control's state directory in a Secret, so that its Pod needs no volume. While the Pod lives the directory counts, also over
// restarts of the container; the Secret is what the next Pod begins with. As a lock does, it tells of a second control: each write names
// the version that it follows on.
//
// Not safe for concurrent use.
type State struct {
	cfg    StateConfig
	kube   Config
	api    client.Client
	secret *corev1.Secret // as it was read or written last; nil: there is none
	public []byte         // what the ConfigMap holds
	slow   time.Time      // when the slow files were written
	warned bool           // that it is too much
}

// RestoreState fills the state directory from the Secret, unless it holds something already, and returns what keeps it from then on. It
// waits for the API server: without its keys a control would be another one.
func (k *Kube) RestoreState(ctx context.Context, cfg StateConfig) (*State, error) {
	s := &State{cfg: cfg, kube: k.cfg, api: k.writer.writes}
	if err := s.restore(ctx); err != nil {
		return nil, fmt.Errorf("kube: state in Secret %s/%s: %w", k.cfg.Namespace, cfg.Secret, err)
	}
	return s, nil
}

func (s *State) restore(ctx context.Context) error {
	there, err := s.read()
	if err != nil {
		return err
	}
	secret := new(corev1.Secret)
	switch err = s.api.Get(ctx, client.ObjectKey{Namespace: s.kube.Namespace, Name: s.cfg.Secret}, secret); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	}
	s.secret = secret
	if len(there) > 0 {
		s.kube.Log.InfoContext(ctx, "state directory is there already, and counts", "files", len(there), "secret", s.cfg.Secret)
		return nil
	}
	for key, value := range secret.Data {
		name, data, err := unpack(key, value)
		if err != nil {
			return fmt.Errorf("key %s: %w", key, err)
		}
		path := filepath.Join(s.cfg.Dir, name)
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = atomicfile.Write(path, data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	s.kube.Log.InfoContext(ctx, "state restored", "files", len(secret.Data), "secret", s.cfg.Secret, "version", secret.ResourceVersion)
	return nil
}

// Run keeps the directory until ctx ends, and then once more. It returns an error when somebody else does: this control must not go on.
func (s *State) Run(ctx context.Context) error {
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			return s.Keep(last, true)
		case <-tick.C:
		}
		switch err := s.Keep(ctx, false); {
		case errors.Is(err, ErrStateTaken):
			return err
		case err != nil && ctx.Err() == nil && !failing:
			failing = true
			s.kube.Log.WarnContext(ctx, "state not kept, and tried again", "error", err)
		case err == nil && failing:
			failing = false
			s.kube.Log.InfoContext(ctx, "state kept again")
		}
	}
}

// Keep writes what has changed; the slow files only when their time has come, or all are asked for.
func (s *State) Keep(ctx context.Context, all bool) error {
	if err := s.publish(ctx); err != nil {
		return fmt.Errorf("kube: ConfigMap %s/%s: %w", s.kube.Namespace, s.cfg.ConfigMap, err)
	}
	files, err := s.steady()
	if err != nil {
		return fmt.Errorf("kube: state directory: %w", err)
	}
	if err = s.keepKeys(files); err != nil {
		return err
	}
	now := s.kube.Now()
	all = all || now.Sub(s.slow) >= slowly
	data, left, err := s.fit(files, all)
	if err != nil {
		return fmt.Errorf("kube: Secret %s/%s: %w", s.kube.Namespace, s.cfg.Secret, err)
	}
	if left > 0 && !s.warned {
		s.kube.Log.WarnContext(ctx, "state is more than a Secret holds, and not all of it is kept: give control a volume", "files_left_out", left, "limit_bytes", maxSecret)
	}
	s.warned = left > 0
	if s.secret != nil && maps.EqualFunc(s.secret.Data, data, bytes.Equal) {
		return nil
	}
	if err := s.write(ctx, data); err != nil {
		return fmt.Errorf("kube: Secret %s/%s: %w", s.kube.Namespace, s.cfg.Secret, err)
	}
	if all {
		s.slow = now
	}
	return nil
}

// keepKeys refuses to write where keys that the Secret holds are gone from the directory: they may be the last there are.
func (s *State) keepKeys(files map[string][]byte) error {
	if s.secret == nil {
		return nil
	}
	for _, root := range s.cfg.Keys {
		had := false
		for key, value := range s.secret.Data {
			name, _, err := unpack(key, value)
			had = had || err == nil && below(name, []string{root})
		}
		has := slices.ContainsFunc(slices.Collect(maps.Keys(files)), func(name string) bool { return below(name, []string{root}) })
		if had && !has {
			return fmt.Errorf("kube: state directory: %s is gone, and what Secret %s/%s holds is left as it is: restart control with an empty state directory, and it takes all from there",
				root, s.kube.Namespace, s.cfg.Secret)
		}
	}
	return nil
}

// fit returns what the Secret is to hold, and how many files have no room in it. What grows with what peers say never takes the room of
// keys: these come first, and nothing is written without them.
func (s *State) fit(files map[string][]byte, all bool) (data map[string][]byte, left int, err error) {
	data = make(map[string][]byte, len(files))
	size := 0
	names := slices.SortedFunc(maps.Keys(files), func(a, b string) int { // small ones first
		return cmp.Or(cmp.Compare(len(files[a]), len(files[b])), cmp.Compare(a, b))
	})
	for rank, roots := range [][]string{s.cfg.Keys, s.cfg.Fast, s.cfg.Slow} {
		for _, name := range names {
			if !below(name, roots) {
				continue
			}
			key, value := pack(name, files[name])
			if rank == 2 && !all {
				if value = s.had(key); value == nil {
					continue
				}
			}
			switch fits := size+len(key)+len(value) <= maxSecret; {
			case fits:
				size += len(key) + len(value)
				data[key] = value
			case rank == 0:
				return nil, 0, fmt.Errorf("keys alone are more than %d bytes: %s has no room", maxSecret, name)
			default:
				left++
			}
		}
	}
	return data, left, nil
}

func (s *State) had(key string) []byte {
	if s.secret == nil {
		return nil
	}
	return s.secret.Data[key]
}

// write replaces the Secret, if it is still the one that we know.
func (s *State) write(ctx context.Context, data map[string][]byte) error {
	secret := &corev1.Secret{ObjectMeta: s.meta(s.cfg.Secret), Type: corev1.SecretTypeOpaque, Data: data}
	var err error
	if s.secret == nil {
		err = s.api.Create(ctx, secret)
	} else {
		secret = s.secret.DeepCopy()
		secret.Data = data
		err = s.api.Update(ctx, secret)
	}
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
		return s.taken(ctx, data, err)
	case apierrors.IsNotFound(err):
		s.secret = nil // somebody deleted it: it is made anew
		return err
	case err != nil:
		return err
	}
	s.secret = secret
	return nil
}

// taken finds out what it means that the Secret is not the one that we know: that another control wrote it, that our own last write got
// there and its answer did not come back, or that somebody touched its labels.
func (s *State) taken(ctx context.Context, ours map[string][]byte, why error) error {
	now := new(corev1.Secret)
	if err := s.api.Get(ctx, client.ObjectKey{Namespace: s.kube.Namespace, Name: s.cfg.Secret}, now); err != nil {
		return errors.Join(why, err)
	}
	switch {
	case maps.EqualFunc(now.Data, ours, bytes.Equal):
		s.secret = now
		return nil
	case s.secret != nil && maps.EqualFunc(now.Data, s.secret.Data, bytes.Equal):
		s.secret = now
		return why // the next try follows on it
	default:
		return fmt.Errorf("%w: %w", ErrStateTaken, why)
	}
}

// publish keeps the ConfigMap.
func (s *State) publish(ctx context.Context) error {
	if s.cfg.ConfigMap == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(s.cfg.Dir, s.cfg.Public))
	if err != nil || bytes.Equal(data, s.public) {
		return ignoreNotExist(err)
	}
	m := new(corev1.ConfigMap)
	err = s.api.Get(ctx, client.ObjectKey{Namespace: s.kube.Namespace, Name: s.cfg.ConfigMap}, m)
	want := map[string]string{s.cfg.Public: string(data)}
	switch {
	case apierrors.IsNotFound(err):
		err = s.api.Create(ctx, &corev1.ConfigMap{ObjectMeta: s.meta(s.cfg.ConfigMap), Data: want})
	case err == nil && !maps.Equal(m.Data, want):
		m.Data = want
		err = s.api.Update(ctx, m)
	}
	if err == nil {
		s.public = data
	}
	return err
}

func (s *State) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: s.kube.Namespace, Name: name, Labels: map[string]string{
		ManagedByLabel: ManagedBy, "app.kubernetes.io/name": "isthmus", "app.kubernetes.io/component": "control",
	}}
}

// steady returns what the directory holds at one moment: what two readings agree on. Keys are rotated in several steps, and half of them
// would be no state to begin with.
func (s *State) steady() (map[string][]byte, error) {
	before, err := s.read()
	for range steadyTries {
		if err != nil {
			return nil, err
		}
		var after map[string][]byte
		if after, err = s.read(); err == nil && maps.EqualFunc(before, after, bytes.Equal) {
			return after, nil
		}
		before = after
	}
	return nil, errors.Join(errors.New("it changes all the time"), err)
}

// read returns the files that are kept, by their names in the directory.
func (s *State) read() (map[string][]byte, error) {
	files := make(map[string][]byte)
	for _, root := range slices.Concat(s.cfg.Keys, s.cfg.Fast, s.cfg.Slow) {
		err := filepath.WalkDir(filepath.Join(s.cfg.Dir, root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return ignoreNotExist(err)
			}
			name, err := filepath.Rel(s.cfg.Dir, path)
			if err != nil || !keepable.MatchString(name) {
				return err
			}
			if info, e := d.Info(); e != nil || info.Size() > maxFile && !below(name, s.cfg.Keys) {
				return ignoreNotExist(e) // it would not fit, and must not keep the rest from being kept
			}
			data, err := atomicfile.Read(path, maxFile)
			if err == nil {
				files[name] = data
			}
			return ignoreNotExist(err) // it went while we looked
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// below reports whether a file is one of roots, or lies below one.
func below(name string, roots []string) bool {
	for _, root := range roots {
		if name == root || strings.HasPrefix(name, root+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// maxFile bounds a file of the state directory, in bytes.
const maxFile = 8 << 20

// keepable is the name of a file that is kept. Files that are being written begin with a dot, or have .tmp- in their name.
var keepable = regexp.MustCompile(`^([a-z0-9][a-z0-9-]*/)*[a-z0-9][a-z0-9-]*(\.[a-z0-9]+)?$`)

// pack returns a file as a key and value of a Secret: a slash becomes an underscore, and what is large is compressed.
func pack(name string, data []byte) (key string, value []byte) {
	key = strings.ReplaceAll(filepath.ToSlash(name), "/", "_")
	if len(data) < 4<<10 {
		return key, data
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b) // no time, no name: the same bytes make the same value
	if _, err := z.Write(data); err != nil || z.Close() != nil {
		return key, data // a buffer takes all
	}
	return key + packed, b.Bytes()
}

// unpack is pack's inverse.
func unpack(key string, value []byte) (name string, data []byte, err error) {
	key, zipped := strings.CutSuffix(key, packed)
	name = strings.ReplaceAll(key, "_", "/")
	if !keepable.MatchString(name) {
		return "", nil, errors.New("is no file that a state directory has")
	}
	if !zipped {
		return filepath.FromSlash(name), value, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(value))
	if err != nil {
		return "", nil, err
	}
	data, err = io.ReadAll(io.LimitReader(z, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("is more than the limit of %d bytes", maxFile)
	}
	return filepath.FromSlash(name), data, err
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
