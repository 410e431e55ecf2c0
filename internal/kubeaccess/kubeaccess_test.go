package kubeaccess_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
)

// kubeconfig writes a file with a context of each name, at that server, and returns its path.
func kubeconfig(t *testing.T, server, current string, contexts ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Config\ncurrent-context: " + current + "\ncontexts:\n")
	for _, c := range contexts {
		b.WriteString("- {name: " + c + ", context: {cluster: c-" + c + ", user: u-" + c + "}}\n")
	}
	b.WriteString("clusters:\n")
	for _, c := range contexts {
		b.WriteString("- {name: c-" + c + ", cluster: {server: '" + server + "'}}\n")
	}
	b.WriteString("users:\n")
	for _, c := range contexts {
		b.WriteString("- {name: u-" + c + ", user: {token: secret-of-" + c + "}}\n")
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestContexts(t *testing.T) {
	one, two := kubeconfig(t, "https://one.example", "eu", "eu", "us"), kubeconfig(t, "https://two.example", "ap", "ap")
	t.Setenv("KUBECONFIG", one+string(filepath.ListSeparator)+two+string(filepath.ListSeparator)+filepath.Join(t.TempDir(), "none"))
	names, err := kubeaccess.Source{}.Contexts()
	if diff := cmp.Diff([]string{"ap", "eu", "us"}, names); diff != "" || err != nil {
		t.Errorf("contexts: %v (-want +got)\n%s", err, diff)
	}
	all, err := kubeaccess.Source{}.Clusters("ap", "us")
	if err != nil || len(all) != 2 || all[0].Context != "ap" || all[0].Config.Host != "https://two.example" ||
		all[1].Config.BearerToken != "secret-of-us" {
		t.Errorf("clusters: %+v, %v", all, err)
	}
	if c, err := (kubeaccess.Source{}).Clusters(); err != nil || len(c) != 1 || c[0].Context != "eu" {
		t.Errorf("the current one: %+v, %v", c, err)
	}
	if c, err := (kubeaccess.Source{Kubeconfig: two}).Cluster(""); err != nil || c.Context != "ap" {
		t.Errorf("of the named file: %+v, %v", c, err)
	}
}

func TestErrorsSayWhichAndWhatThereIs(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("HOME", t.TempDir())
	file := kubeconfig(t, "https://one.example", "''", "eu", "us")
	none := filepath.Join(t.TempDir(), "none")
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("contexts: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file, context string
		noContext     bool
		want          []string
	}{
		{file, "mars", true, []string{file, `"mars"`, "there are: eu, us"}},
		{file, "", true, []string{file, "no current context", "--context", "there are: eu, us"}},
		{none, "eu", true, []string{none, "--kubeconfig names it"}},
		{broken, "eu", false, []string{broken}},
	} {
		_, err := kubeaccess.Source{Kubeconfig: c.file}.Clusters(c.context)
		if err == nil || errors.Is(err, kubeaccess.ErrNoContext) != c.noContext {
			t.Errorf("%s, %q: %v", c.file, c.context, err)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s, %q: the error does not say %q: %v", c.file, c.context, w, err)
			}
		}
	}
}

func TestExplain(t *testing.T) {
	say := http.StatusForbidden
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(say) }))
	defer server.Close()
	c, err := kubeaccess.Source{Kubeconfig: kubeconfig(t, server.URL, "eu", "eu")}.Cluster("")
	if err != nil {
		t.Fatal(err)
	}
	set, err := c.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	get := func(ctx context.Context) error {
		_, err := set.CoreV1().Pods("isthmus-system").Get(ctx, "isthmus-control-0", metav1.GetOptions{})
		return c.Explain("find control", err)
	}
	if err := get(t.Context()); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `context "eu": find control: your user may not`) {
		t.Errorf("forbidden: %v", err)
	}
	say = http.StatusUnauthorized
	if err := get(t.Context()); !apierrors.IsUnauthorized(err) || !strings.Contains(err.Error(), "log in") {
		t.Errorf("unauthorized: %v", err)
	}
	past, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	if err := get(past); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v", err)
	}
	server.Close()
	if err := get(t.Context()); !errors.Is(err, kubeaccess.ErrUnreachable) || !strings.Contains(err.Error(), server.URL) {
		t.Errorf("nobody there: %v", err)
	}
	if c.Explain("nothing", nil) != nil {
		t.Error("no error is none")
	}
}
