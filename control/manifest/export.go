package manifest

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	mcsv1alpha1 "sigs.k8s.io/mcs-api/pkg/apis/v1alpha1"
	mcsv1beta1 "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/isthmus-mesh/isthmus/control"
	"github.com/isthmus-mesh/isthmus/topology"
)

// ownAnnotations is what the annotations begin with that mean something to us.
const ownAnnotations = "isthmus.dev/"

// maxAudience bounds the clusters that an export names.
const maxAudience = 256

func serviceExport(c *checker, in *mcsv1beta1.ServiceExport) Object {
	e := &control.ServiceExport{
		Meta:   c.meta(&in.ObjectMeta, true, validation.IsDNS1123Label),
		Labels: in.Spec.ExportedLabels, Annotations: in.Spec.ExportedAnnotations,
		APIVersion: c.header.apiVersion, Generation: in.Generation,
	}
	if len(c.errs) == 0 {
		e.Service = c.service("metadata.name", e.Namespace, e.Name)
	}
	c.labels("spec.exportedLabels", in.Spec.ExportedLabels)
	for k := range in.Spec.ExportedAnnotations {
		c.all("spec.exportedAnnotations."+k, "key "+strconv.Quote(k), validation.IsQualifiedName(strings.ToLower(k)))
	}
	for _, k := range slices.Sorted(maps.Keys(in.Annotations)) {
		// A misspelt word of ours would export to everybody what was meant for a few.
		if strings.HasPrefix(k, ownAnnotations) && k != control.AudienceAnnotation {
			c.addf("metadata.annotations", "%s is not known here; is it %s?", k, control.AudienceAnnotation)
		}
	}
	if audience, ok := in.Annotations[control.AudienceAnnotation]; ok {
		e.Audience = c.audience(audience)
	}
	return Object{Export: e}
}

// serviceExportAlpha reads the older version, which has the same fields.
func serviceExportAlpha(c *checker, in *mcsv1alpha1.ServiceExport) Object {
	return serviceExport(c, &mcsv1beta1.ServiceExport{ObjectMeta: in.ObjectMeta, Spec: mcsv1beta1.ServiceExportSpec{
		ExportedLabels: in.Spec.ExportedLabels, ExportedAnnotations: in.Spec.ExportedAnnotations,
	}})
}

// audience reads cluster names separated by commas. An empty list is refused: it would read as "nobody" and act as "everybody".
func (c *checker) audience(s string) []topology.ClusterName {
	field := "metadata.annotations"
	var out []topology.ClusterName
	for part := range strings.SplitSeq(s, ",") {
		name, err := topology.ParseClusterName(strings.TrimSpace(part))
		if err != nil {
			c.addf(field, "%s: %q: want cluster names separated by commas: %v", control.AudienceAnnotation, s, err)
			return nil
		}
		if len(out) == maxAudience {
			c.addf(field, "%s: more than %d clusters", control.AudienceAnnotation, maxAudience)
			return nil
		}
		out = append(out, name)
	}
	slices.SortFunc(out, topology.ClusterName.Compare)
	return slices.Compact(out)
}
