package kindlab

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/template"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

//go:embed shop.yaml
var shopManifest string

var shopTemplate = template.Must(template.New("shop").Parse(shopManifest))

// owner is who the playground is to server-side apply.
const owner = client.FieldOwner("isthmus-playground")

// poll is how often an API server is asked how far it is.
const poll = 500 * time.Millisecond

// Shop is the sample application in one cluster: checkout, exported, and in the cluster of the caller also web, which calls it.
type Shop struct {
	Cluster string
	Image   string // of the isthmus program
	Caller  bool
}

// Callers are the namespaces that the caller is in, and its service account in each: beside checkout with a sidecar, and elsewhere without.
func (Shop) Callers() map[string]string {
	return map[string]string{"shop": "web", "outside": "default"}
}

func (s Shop) objects() ([]*unstructured.Unstructured, error) {
	var text bytes.Buffer
	if err := shopTemplate.Execute(&text, s); err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	documents := yaml.NewYAMLReader(bufio.NewReader(&text))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		o := new(unstructured.Unstructured)
		if err := yaml.Unmarshal(document, &o.Object); err != nil {
			return nil, err
		}
		if o.GetKind() != "" { // a comment alone
			out = append(out, o)
		}
	}
}

// Open applies the shop to a cluster, and waits until its Deployments are available.
func (s Shop) Open(ctx context.Context, config *rest.Config) error {
	ctrllog.SetLogger(logr.Discard()) // or it complains that nobody did
	api, err := client.New(config, client.Options{})
	if err != nil {
		return fmt.Errorf("shop in %s: %w", s.Cluster, err)
	}
	objects, err := s.objects()
	if err != nil {
		return fmt.Errorf("shop: %w", err)
	}
	for _, o := range objects {
		if err := api.Apply(ctx, client.ApplyConfigurationFromUnstructured(o), owner, client.ForceOwnership); err != nil {
			return fmt.Errorf("shop in %s: %s %s: %w", s.Cluster, o.GetKind(), o.GetName(), err)
		}
	}
	for _, o := range objects {
		if o.GetKind() == "Deployment" {
			if err := available(ctx, api, client.ObjectKeyFromObject(o)); err != nil {
				return fmt.Errorf("shop in %s: %w", s.Cluster, err)
			}
		}
	}
	return nil
}

// available waits for a Deployment.
func available(ctx context.Context, api client.Client, name client.ObjectKey) error {
	var last string
	for {
		d := new(appsv1.Deployment)
		err := api.Get(ctx, name, d)
		switch {
		case err != nil:
			last = err.Error()
		case d.Status.ObservedGeneration >= d.Generation && d.Status.UpdatedReplicas > 0 && d.Status.UnavailableReplicas == 0:
			return nil
		default:
			var said []string
			for _, c := range d.Status.Conditions {
				said = append(said, c.Message)
			}
			last = strings.Join(said, " ")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("deployment %s is not available: %s: %w", name, last, ctx.Err())
		case <-time.After(poll):
		}
	}
}
