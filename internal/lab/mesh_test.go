package lab_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/net/websocket"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/lab/promise"
	"github.com/isthmus-mesh/isthmus/internal/netns"
)

// mesh is what one scenario acts on. Its commands run one after the other.
type mesh struct {
	binaries string
	dir      string
	ctx      context.Context //nolint:containedctx // of the scenario: the commands of testscript have none
	cancel   context.CancelFunc
	pg       *lab.Playground
	loads    map[string]*load
	held     map[string]net.Conn
	kept     map[string]*keptStream
	servers  []*httptest.Server
	watcher  *watcher
	wires    *netns.Eavesdropper // in network namespaces
	outside  map[string]bool     // the addresses that calls come from
	isNet    bool

	// Of scenarios of promises:
	promised bool
	runtime  lab.Runtime
	event    time.Time
	heldUp   func() time.Duration // since then
	killed   []killing
	rows     *promise.Table
	judged   map[string]bool // of loads
	aside    []string        // IDs of requests that are not the ledger's
}

func newMesh(binaries, dir string) *mesh {
	ctx, cancel := context.WithCancel(context.Background())
	return &mesh{binaries: binaries, dir: dir, ctx: ctx, cancel: cancel, loads: map[string]*load{}, held: map[string]net.Conn{}, kept: map[string]*keptStream{}, outside: map[string]bool{}, judged: map[string]bool{}}
}

func (m *mesh) close() {
	for _, l := range m.loads {
		_ = l.stop()
	}
	for _, c := range m.held {
		_ = c.Close()
	}
	for _, k := range m.kept {
		_ = k.close()
	}
	for _, s := range m.servers {
		s.Close()
	}
	if m.watcher != nil {
		m.watcher.close()
	}
	if m.wires != nil {
		m.wires.Close()
	}
	if m.pg != nil {
		_, _ = m.pg.Stop(m.ctx, time.Second)
		if m.isNet {
			_ = m.pg.Down(m.ctx, time.Second, false) // namespaces outlive their programs
		}
		m.pg.Close()
	}
	m.cancel()
}

// commands of the scenarios; see TestScenarios.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"mesh":       command((*mesh).meshCommand),
	"manifest":   command((*mesh).manifest),
	"hold":       command((*mesh).hold),
	"holds":      command((*mesh).holds),
	"stream":     command((*mesh).stream),
	"server":     command((*mesh).server),
	"traffic":    command((*mesh).traffic),
	"expect":     command((*mesh).expect),
	"watch":      command((*mesh).watch),
	"wan":        command((*mesh).wan),
	"svid":       command((*mesh).svid),
	"eventually": command((*mesh).eventually),
	"never":      command((*mesh).never),
	"call":       command((*mesh).call),
	"logs":       command((*mesh).logs),
	"event":      command((*mesh).happens),
	"promise":    command((*mesh).promise),
	"flap":       command((*mesh).flap),
	"isthmus":    command((*mesh).isthmus),
}

var errUsage = errors.New("usage: see TestScenarios")

func command(do func(*mesh, *testscript.TestScript, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		err := do(ts.Value(meshKey{}).(*mesh), ts, args)
		switch {
		case err != nil && !neg:
			ts.Fatalf("%v", err)
		case err != nil:
			ts.Logf("%v", err)
		case neg:
			ts.Fatalf("succeeded, which it should not")
		}
	}
}

func (m *mesh) meshCommand(ts *testscript.TestScript, args []string) (err error) {
	if len(args) == 0 {
		return errUsage
	}
	ctx, cancel := context.WithTimeout(m.ctx, 2*patience)
	defer cancel()
	var done []string
	verb, targets := args[0], args[1:]
	switch verb {
	case "up":
		return m.up(ctx, ts, targets, lab.Options{})
	case "net":
		return m.net(ctx, ts, targets)
	case "on":
		return m.on(ctx, ts, targets)
	case "break":
		m.kill(targets)
		done, err = m.pg.Break(ctx, targets...)
	case "stop":
		done, err = m.pg.Stop(ctx, 20*time.Second, targets...)
	case "heal":
		done, err = m.pg.Heal(ctx, targets...)
	default:
		return errUsage
	}
	if err == nil && len(done) == 0 {
		err = fmt.Errorf("%s %s: there was nothing to do", verb, strings.Join(targets, " "))
	}
	ts.Logf("%s", strings.Join(done, " "))
	return err
}

// net is up, in network namespaces: "mesh net eu us ap -- eu-us=80ms,1%".
func (m *mesh) net(ctx context.Context, ts *testscript.TestScript, args []string) error {
	clusters, links, err := withLinks(args)
	if err != nil {
		return err
	}
	m.isNet = true
	return m.up(ctx, ts, clusters, lab.Options{Runtime: lab.Netns, Links: links})
}

// withLinks reads "CLUSTER... -- LINK...".
func withLinks(args []string) (clusters []string, links []lab.Direction, err error) {
	i := slices.Index(args, "--")
	if i < 0 {
		return args, nil, nil
	}
	var names []string
	for _, a := range args[:i] {
		name, _, _ := strings.Cut(a, ":")
		names = append(names, name)
	}
	for _, a := range args[i+1:] {
		d, err := lab.ParseDirections(a, names)
		if err != nil {
			return nil, nil, err
		}
		links = append(links, d...)
	}
	return args[:i], links, nil
}

// svid asks the SPIFFE Workload API of a workload, by SPIFFE's own client, and prints what it says.
func (m *mesh) svid(ts *testscript.TestScript, args []string) error {
	text, err := m.svidText(args)
	_, _ = io.WriteString(ts.Stdout(), text)
	return err
}

func (m *mesh) svidText(args []string) (string, error) {
	if len(args) != 1 {
		return "", errUsage
	}
	socket, err := m.pg.WorkloadAPIOf(args[0])
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(m.ctx, 2*time.Second) // where there is no identity, the API waits for one
	defer cancel()
	got, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		return "no identity: " + err.Error() + "\n", nil
	}
	var out strings.Builder
	for _, s := range got.SVIDs {
		fmt.Fprintf(&out, "%s %x\n", s.ID, sha256.Sum256(s.Certificates[0].Raw))
	}
	for _, b := range got.Bundles.Bundles() {
		fmt.Fprintf(&out, "%s %d roots\n", b.TrustDomain().Name(), len(b.X509Authorities()))
	}
	return out.String(), nil
}

// wan changes what lies between clusters.
func (m *mesh) wan(_ *testscript.TestScript, args []string) error {
	var links []lab.Direction
	var names []string
	for _, c := range m.pg.Spec().Clusters {
		names = append(names, c.Name)
	}
	for _, a := range args {
		d, err := lab.ParseDirections(a, names)
		if err != nil {
			return err
		}
		links = append(links, d...)
	}
	_, err := m.pg.SetDirections(m.ctx, links)
	return err
}

func (m *mesh) up(ctx context.Context, ts *testscript.TestScript, args []string, opts lab.Options) error {
	var clusters, env []string
	for _, a := range args {
		if strings.Contains(a, "=") {
			env = append(env, a)
		} else {
			clusters = append(clusters, a)
		}
	}
	spec, err := lab.Sample(len(clusters))
	if err != nil {
		return err
	}
	for i, c := range spec.Clusters {
		name, copies, many := strings.Cut(clusters[i], ":")
		if name != c.Name {
			return fmt.Errorf("cluster %d is %s, not %s", i+1, c.Name, clusters[i])
		}
		if !many {
			continue
		}
		var n int
		if n, err = strconv.Atoi(copies); err != nil {
			return fmt.Errorf("%s: %w", clusters[i], err)
		}
		for k := 1; k < n; k++ {
			w := c.Workloads[0]
			w.Name = fmt.Sprintf("%s-%d", w.App, k)
			spec.Clusters[i].Workloads = append(spec.Clusters[i].Workloads, w)
		}
	}
	begun := time.Now()
	var started []string
	opts.Binaries, opts.Env, opts.Patience, opts.DieWithParent = lab.BinariesIn(m.binaries), env, patience, true
	m.pg, started, err = lab.Up(ctx, m.dir, spec, opts)
	ts.Logf("%d processes in %s", len(started), time.Since(begun).Round(time.Millisecond))
	return err
}

func (m *mesh) manifest(ts *testscript.TestScript, args []string) error {
	switch {
	case len(args) >= 3 && len(args) <= 4 && args[0] == "put":
		name := filepath.Base(args[len(args)-1])
		text := os.Expand(ts.ReadFile(args[2]), ts.Getenv)
		return os.WriteFile(filepath.Join(m.pg.ManifestsOf(args[1]), name), []byte(text), 0o600)
	case len(args) == 3 && args[0] == "rm":
		return os.Remove(filepath.Join(m.pg.ManifestsOf(args[1]), args[2]))
	case len(args) == 4 && args[0] == "get":
		b, err := os.ReadFile(filepath.Join(m.pg.ManifestsOf(args[1]), args[2]))
		if err != nil {
			return err
		}
		return os.WriteFile(ts.MkAbs(args[3]), b, 0o600)
	case len(args) == 5 && args[0] == "edit":
		path := filepath.Join(m.pg.ManifestsOf(args[1]), args[2])
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		edited := regexp.MustCompile(args[3]).ReplaceAllString(string(b), args[4])
		if edited == string(b) {
			return fmt.Errorf("%s matches nothing in %s", args[3], path)
		}
		return os.WriteFile(path, []byte(edited), 0o600)
	default:
		return errUsage
	}
}

// server starts a server that the mesh does not know.
func (m *mesh) server(ts *testscript.TestScript, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	cluster, name := args[0], args[1]
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s of %s has no sidecar; you asked for %s\n", name, cluster, r.URL.Path)
	}))
	m.servers = append(m.servers, s)
	host, port, err := net.SplitHostPort(s.Listener.Addr().String())
	ts.Setenv(name+"_address", host)
	ts.Setenv(name+"_port", port)
	return err
}

// repeatable runs the commands that eventually and never repeat, and returns what they print.
func (m *mesh) repeatable(ts *testscript.TestScript, args []string) (string, error) {
	switch args[0] {
	case "call":
		return m.output(args[1:])
	case "logs":
		return m.logText(args[1:])
	case "svid":
		return m.svidText(args[1:])
	case "isthmus":
		return m.isthmusText(ts, args[1:])
	default:
		return "", fmt.Errorf("%s can't be repeated", args[0])
	}
}

func (m *mesh) eventually(ts *testscript.TestScript, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	want, err := regexp.Compile("(?m)" + args[0])
	if err != nil {
		return err
	}
	begun := time.Now()
	for {
		got, err := m.repeatable(ts, args[1:])
		if err != nil {
			return err
		}
		if want.MatchString(got) {
			_, _ = io.WriteString(ts.Stdout(), got)
			ts.Logf("after %s", time.Since(begun).Round(time.Millisecond))
			return nil
		}
		if time.Since(begun) > patience {
			return fmt.Errorf("within %s nothing matched %s; the last output:\n%s", patience, args[0], got)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (m *mesh) never(ts *testscript.TestScript, args []string) error {
	if len(args) < 3 {
		return errUsage
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	bad, err := regexp.Compile("(?m)" + args[1])
	if err != nil {
		return err
	}
	for range n {
		got, err := m.repeatable(ts, args[2:])
		if err != nil {
			return err
		}
		if bad.MatchString(got) {
			return fmt.Errorf("it matched %s:\n%s", args[1], got)
		}
	}
	return nil
}

func (m *mesh) logs(ts *testscript.TestScript, args []string) error {
	text, err := m.logText(args)
	_, _ = io.WriteString(ts.Stdout(), text)
	return err
}

func (m *mesh) logText(targets []string) (string, error) {
	_, files, err := m.pg.LogsOf(targets...)
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		all.Write(b)
	}
	return all.String(), nil
}

// isthmus runs the command; its exit code is for the script to judge, as that of exec.
func (m *mesh) isthmus(ts *testscript.TestScript, args []string) error {
	return ts.Exec("isthmus", args...)
}

// isthmusText returns all that the command prints, whatever its exit code.
func (m *mesh) isthmusText(ts *testscript.TestScript, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(m.ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(m.binaries, "isthmus"), args...)
	cmd.Env = append(os.Environ(), "ISTHMUS_PLAYGROUND="+m.dir)
	cmd.Dir = ts.MkAbs(".")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); exited {
		err = nil
	}
	return out.String(), err
}

func (m *mesh) hold(_ *testscript.TestScript, args []string) error {
	if len(args) != 3 {
		return errUsage
	}
	u, err := url.Parse(args[2])
	if err != nil {
		return err
	}
	c, err := m.tunnel(args[1], withPort(u))
	if err != nil {
		return err
	}
	if u.Scheme == "ws" {
		if c, err = m.webSocket(c, u); err != nil {
			return err
		}
	}
	m.held[args[0]] = c
	return echoes(c)
}

func (m *mesh) holds(ts *testscript.TestScript, args []string) error {
	if len(args) != 2 || !slices.Contains([]string{"open", "closed", "end"}, args[1]) {
		return errUsage
	}
	c, ok := m.held[args[0]]
	if !ok {
		return fmt.Errorf("no connection %q", args[0])
	}
	switch args[1] {
	case "open":
		return echoes(c)
	case "end":
		return c.Close()
	}
	begun := time.Now()
	_ = c.SetReadDeadline(begun.Add(patience))
	n, err := c.Read(make([]byte, 1))
	if n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("still open after %s: %d bytes, %w", time.Since(begun).Round(time.Millisecond), n, err)
	}
	ts.Logf("closed after %s: %v", time.Since(begun).Round(time.Millisecond), err)
	return nil
}

// webSocket makes a WebSocket of a connection. Its request is not one of those that the ledger is to judge.
func (m *mesh) webSocket(c net.Conn, u *url.URL) (net.Conn, error) {
	cfg, err := websocket.NewConfig(u.String(), "http://localhost/")
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%032x", len(m.aside)+1)
	m.aside = append(m.aside, id)
	cfg.Header.Set("Traceparent", "00-"+id+"-"+id[16:]+"-00")
	return websocket.NewClient(cfg, c)
}

// echoes sends a little over the connection and waits until it comes back.
func echoes(c net.Conn) error {
	const said = "are you there?"
	_ = c.SetDeadline(time.Now().Add(patience))
	defer func() { _ = c.SetDeadline(time.Time{}) }()
	if _, err := io.WriteString(c, said); err != nil {
		return err
	}
	heard := make([]byte, len(said))
	if _, err := io.ReadFull(c, heard); err != nil {
		return err
	}
	if string(heard) != said {
		return fmt.Errorf("said %q, heard %q", said, heard)
	}
	return nil
}
