package kindtests

import (
	"strings"
	"testing"
)

// TestDescribe has views tell of what must not be, which no golden file has.
func TestDescribe(t *testing.T) {
	for name, c := range map[string]struct {
		object   string
		describe func([]byte) (string, error)
		want     string
	}{
		"an address of a headless import":      {`{"spec": {"type": "Headless", "ips": ["241.0.0.1"], "ipFamilies": ["IPv4"]}}`, describeImport, `ips ["241.0.0.1"]`},
		"no address":                           {`{"spec": {"type": "ClusterSetIP", "ipFamilies": ["IPv4"]}}`, describeImport, `ips []`},
		"no family":                            {`{"spec": {"type": "ClusterSetIP", "ips": ["241.0.0.1"]}}`, describeImport, `ips ["241.0.0.1"]`},
		"another order":                        {`{"spec": {"type": "ClusterSetIP", "ips": ["fd00::1", "241.0.0.1"], "ipFamilies": ["IPv4", "IPv6"]}}`, describeImport, `ips ["fd00::1" "241.0.0.1"]`},
		"what is no address":                   {`{"spec": {"type": "ClusterSetIP", "ips": ["here"], "ipFamilies": ["IPv4"]}}`, describeImport, `ips ["here"]: ParseAddr`},
		"an affinity without its time":         {`{"spec": {"sessionAffinity": "ClientIP"}}`, describeImport, "sessionAffinity ClientIP without a timeout"},
		"an import that nobody offers":         {`{"spec": {"type": "Headless"}}`, describeImport, "from nobody\n  no conditions"},
		"a condition of an earlier generation": {`{"metadata": {"generation": 3}, "status": {"conditions": [{"type": "Valid", "status": "True", "reason": "Valid", "observedGeneration": 2}]}}`, describeExport, "Valid=True/Valid of generation 2, which is 3 now"},
		"an export without conditions":         {`{}`, describeExport, "no conditions"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.describe([]byte(c.object))
			if err != nil || !strings.Contains(got, c.want) {
				t.Errorf("%s, %v; want %s in it", got, err, c.want)
			}
		})
	}
}

func TestDescribeNothing(t *testing.T) {
	for _, describe := range []func([]byte) (string, error){describeExport, describeImport} {
		if got, err := describe([]byte("nothing")); err == nil {
			t.Errorf("%q of what is no object", got)
		}
	}
}

// TestGroup has clusters that see the same stand together, in the order of clusters.
func TestGroup(t *testing.T) {
	m := mesh{}
	for _, name := range clusterNames {
		m.members = append(m.members, &member{name: name})
	}
	got, err := m.group(func(c *member) (string, error) {
		if c.name == "eu" {
			return " none", nil
		}
		return "\n  port 80", nil
	})
	if want := "ap us:\n  port 80\neu: none\n"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
