package lab_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var fenced = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")

// readmeBlocks returns the README's fenced blocks of one language, in order.
func readmeBlocks(t *testing.T, language string) []string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range fenced.FindAllStringSubmatch(string(page), -1) {
		if m[1] == language {
			blocks = append(blocks, m[2])
		}
	}
	return blocks
}

// TestReadmeFirstCommands: the first block is what a fresh machine needs, and each of its commands is a target of the Makefile.
func TestReadmeFirstCommands(t *testing.T) {
	if got := readmeBlocks(t, "sh")[0]; got != "make demo\nmake test\n" {
		t.Fatalf("the README begins with\n%s", got)
	}
	makefile, err := os.ReadFile(filepath.Join("..", "..", "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"\ndemo:", "\ntest:"} {
		if !strings.Contains(string(makefile), target) {
			t.Errorf("the Makefile has no target %s", target)
		}
	}
}

// TestReadmeTour runs the tour's commands one after the other in one shell, as a reader would, and looks at what the README
// promises of them.
func TestReadmeTour(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real programs")
	}
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing: apt-get install %s", tool, tool)
			}
			t.Skipf("%s is missing: apt-get install %s", tool, tool)
		}
	}
	binaries, err := build()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	if err = os.Symlink(binaries, filepath.Join(home, "bin")); err != nil {
		t.Fatal(err)
	}
	hello := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello from my own\n")) }))
	defer hello.Close()
	manifest := strings.ReplaceAll(readmeBlocks(t, "yaml")[0], "8088", hello.URL[strings.LastIndex(hello.URL, ":")+1:])
	if err = os.WriteFile(filepath.Join(home, "hello.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}

	tour := readmeBlocks(t, "sh")[1:]
	last := len(tour) - 1
	script := "set -e\n" + strings.Join(tour[:last], "\necho '== next'\n") + `
echo '== own'
folder=$(isthmus playground status | awk '$1 == "us" && $2 ~ /\// {print $2}')
cp hello.yaml "$folder/"
for i in $(seq 1 100); do
  curl -s http://hello.demo.svc.clusterset.local/ | grep 'hello from my own' && break
  sleep 0.1
done
echo '== last'
` + tour[last]

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	// status ends with 1 where it has found something and with 3 where somebody did not answer, as it must while a cluster is dead.
	script = strings.ReplaceAll(script, "isthmus status\n", "isthmus status || { code=$?; test $code = 1 || test $code = 3; }\n")
	sh := exec.CommandContext(ctx, "bash", "-c", script)
	sh.Dir = home
	sh.Env = append(os.Environ(), "XDG_CACHE_HOME="+filepath.Join(home, "cache"), "PWD="+home, "ISTHMUS_PLAYGROUND=")
	t.Cleanup(func() { // where the script ended early
		down := exec.Command(filepath.Join(binaries, "isthmus"), "playground", "down")
		down.Env = sh.Env
		_ = down.Run()
	})
	out, err := sh.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rest := string(out)
	for _, promise := range []string{
		"The playground is up", "Served-By-Cluster: eu", "checkout.shop", "killed us/control", "Served-By-Cluster: ap", "FINDINGS",
		"started us/control", "hello from my own", "checkout", "ServiceExport|exported|EXPORTED|CONDITIONS", "is down",
	} {
		found := regexp.MustCompile(promise).FindStringIndex(rest)
		if found == nil {
			t.Fatalf("%q was not seen (in this order) in\n%s", promise, out)
		}
		rest = rest[found[1]:]
	}
}
