package inject

import (
	"cmp"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/isthmus-mesh/isthmus/internal/strictyaml"
)

// How the connections of an application are brought to its sidecar.
const (
	CaptureByInit = "init" // a container that runs before, with CAP_NET_ADMIN
	CaptureByCNI  = "cni"  // the CNI plugin isthmus-cni, on the node
)

// Settings are what a cluster's sidecars have in common. The chart writes them as a file, which control and "isthmus inject" read.
type Settings struct {
	TrustDomain     string             `json:"trustDomain"`     // required
	Control         strictyaml.Address `json:"control"`         // host:port, as Pods reach it. Required
	SystemNamespace string             `json:"systemNamespace"` // of control, never injected. Default isthmus-system
	Image           string             `json:"image"`           // holds isthmus-sidecar and isthmus-capture. Required
	ImagePullPolicy corev1.PullPolicy  `json:"imagePullPolicy"` // default IfNotPresent
	// Capture are the prefixes that services of the mesh have their addresses from, all of one family. Default 241.0.0.0/8.
	Capture []string `json:"capture"`
	// CaptureBy is CaptureByInit (default) or CaptureByCNI.
	CaptureBy string `json:"captureBy"`
	Log       struct {
		Level  string `json:"level"`  // default info
		Format string `json:"format"` // default text
	} `json:"log"`
	// Resources of each injected container. Default: 10m and 32Mi requested, 128Mi at most.
	Resources *corev1.ResourceRequirements `json:"resources"`
}

// MaxSettings bounds the file.
const MaxSettings = 64 << 10

// ParseSettings reads a file of Settings; file is its name, for errors.
func ParseSettings(file string, data []byte) (*Settings, error) {
	if len(data) > MaxSettings {
		return nil, fmt.Errorf("%s: %d bytes: want at most %d", file, len(data), MaxSettings)
	}
	documents, err := strictyaml.Documents(file, data)
	if err != nil {
		return nil, err
	}
	s := new(Settings)
	if err = strictyaml.Decode(file, data, s); err != nil {
		return nil, err
	}
	return s, s.check(func(field, format string, args ...any) error { return documents[0].Errorf(field, format, args...) })
}

// Check refuses what can't work, and fills in defaults.
func (s *Settings) Check() error {
	return s.check(func(field, format string, args ...any) error { return fmt.Errorf(field+": "+format, args...) })
}

func (s *Settings) check(wrong func(field, format string, args ...any) error) error {
	var errs []error
	add := func(field, format string, args ...any) { errs = append(errs, wrong(field, format, args...)) }
	for _, f := range []struct{ field, value string }{{"trustDomain", s.TrustDomain}, {"control", string(s.Control)}, {"image", s.Image}} {
		if f.value == "" {
			add(f.field, "is missing")
		}
	}
	if err := s.Control.Check(); err != nil {
		add("control", "%v", err)
	}
	s.SystemNamespace = cmp.Or(s.SystemNamespace, "isthmus-system")
	s.ImagePullPolicy = cmp.Or(s.ImagePullPolicy, corev1.PullIfNotPresent)
	if !slices.Contains([]corev1.PullPolicy{corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever}, s.ImagePullPolicy) {
		add("imagePullPolicy", "%q: want Always, IfNotPresent or Never", s.ImagePullPolicy)
	}
	if len(s.Capture) == 0 {
		s.Capture = []string{"241.0.0.0/8"}
	}
	var first netip.Prefix
	for i, text := range s.Capture {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			add("capture", "%q: want a prefix such as 241.0.0.0/8", text)
		case i == 0:
			first = p
		case p.Addr().Is4() != first.Addr().Is4():
			add("capture", "%s and %s: the sidecar of a Pod takes captured connections of one family", first, p)
		}
	}
	s.CaptureBy = cmp.Or(s.CaptureBy, CaptureByInit)
	if s.CaptureBy != CaptureByInit && s.CaptureBy != CaptureByCNI {
		add("captureBy", "%q: want %s or %s", s.CaptureBy, CaptureByInit, CaptureByCNI)
	}
	s.Log.Level, s.Log.Format = cmp.Or(s.Log.Level, "info"), cmp.Or(s.Log.Format, "text")
	if !slices.Contains(levels, s.Log.Level) {
		add("log.level", "%q: want one of %s", s.Log.Level, strings.Join(levels, ", "))
	}
	if s.Log.Format != "text" && s.Log.Format != "json" {
		add("log.format", "%q: want text or json", s.Log.Format)
	}
	if s.Resources == nil {
		s.Resources = &corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
		}
	}
	return errors.Join(errs...)
}

var levels = []string{"debug", "info", "warn", "error"}

// loopback is where captured connections are taken: they are redirected to the loopback address of their family.
func (s *Settings) loopback() string {
	if p, err := netip.ParsePrefix(s.Capture[0]); err == nil && p.Addr().Is6() {
		return "[::1]"
	}
	return "127.0.0.1"
}

// CheckBundle says what is wrong with a trust bundle that Pods would be started with.
func CheckBundle(bundle string) error {
	block, _ := pem.Decode([]byte(bundle))
	switch {
	case block == nil || block.Type != "CERTIFICATE":
		return errors.New("no certificate in the trust bundle: want the trust domain's roots in PEM")
	case len(bundle) > MaxBundle:
		return fmt.Errorf("a trust bundle of %d bytes: want at most %d", len(bundle), MaxBundle)
	}
	return nil
}

// MaxBundle bounds what goes into an annotation: those of an object have 256 KiB together.
const MaxBundle = 64 << 10
