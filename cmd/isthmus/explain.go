package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/api/errcode"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/output"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
	"github.com/isthmus-mesh/isthmus/topology"
)

// maxExplanation bounds what is read of a sidecar's answer.
const maxExplanation = 16 << 20

func newExplain(g *global) *cobra.Command {
	format := output.TableFormat
	var port uint16
	var udp bool
	var asIf []string
	c := &cobra.Command{
		Use:   "explain {CLUSTER/WORKLOAD SERVICE.NAMESPACE | ISTnnnn}",
		Short: "Why a call goes where it goes, or what an error code means",
		Long: `explain asks the sidecar of a workload where its calls to a service go, in which order, and why. The answer comes from
the process that decides, by the function that decides.

With --as-if us=down it also says what would become of them then: without waiting for the bad day, and without touching anything. Of a copy:
--as-if eu/checkout-0=down.

SERVICE.NAMESPACE means the name of the clusterset, SERVICE.NAMESPACE.svc.clusterset.local; full names are taken too.
With an error code, as errors of Isthmus carry them, it says what the code means and what to do.

It exits with 1 when there is nowhere to go.`,
		Example: example("isthmus explain eu/web checkout.shop", "isthmus explain eu/web checkout.shop --as-if us=down", "isthmus explain eu/web checkout.shop --port 9090", "isthmus explain eu/web dns.shop --port 53 --udp", "isthmus explain IST2005"),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return errors.New("explain what? CLUSTER/WORKLOAD SERVICE.NAMESPACE, for example eu/web checkout.shop, or an error code")
			}
			return nil
		},
		ValidArgsFunction: g.completeExplain,
		RunE: func(c *cobra.Command, args []string) error {
			down, err := supposed(asIf)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return explainCode(c.OutOrStdout(), args[0])
			}
			ctx, cancel := context.WithTimeout(c.Context(), g.timeout)
			defer cancel()
			sidecar, err := g.sidecarAdmin(ctx, c.ErrOrStderr(), args[0])
			if err != nil {
				return err
			}
			name := args[1] // any name that a program may call
			if strings.Contains(name, "/") {
				service, notOne := parseService(name)
				if notOne != nil {
					return notOne
				}
				name = service.String()
			}
			x, raw, err := askSidecar(ctx, sidecar, name, portText(port, udp), down)
			if isUsage(err) {
				return err
			}
			if err != nil {
				return fmt.Errorf("the sidecar of %s (its calls are decided there, so nobody else can tell): %w", args[0], err)
			}
			if format.IsTable() {
				err = printExplanation(c.OutOrStdout(), format, x)
			} else {
				err = output.Write(c.OutOrStdout(), format, raw, nil)
			}
			if err != nil {
				return err
			}
			if x.Error != nil {
				hint := ""
				if x.Error.Code == "unknown_service" {
					cluster, _, _ := strings.Cut(args[0], "/")
					hint = g.catalogue(c.Context(), cluster).hint(x.Service, x.Service.String())
				}
				return finding{"nowhere to go from " + args[0] + hint} // why is printed already
			}
			if len(down) > 0 && !slices.ContainsFunc(x.Rows, func(r topology.ExplanationRow) bool { return r.AsIf != nil && r.AsIf.Traffic > 0 }) {
				return finding{"nowhere to go from " + args[0] + " if " + list(down) + " were down"}
			}
			return nil
		},
	}
	c.Flags().Uint16Var(&port, "port", 0, "the service's port `number` (default: its first, or 80)")
	c.Flags().BoolVar(&udp, "udp", false, "ask of the port of that number for datagrams")
	c.Flags().StringArrayVar(&asIf, "as-if", nil, "suppose that a place is down: `CLUSTER=down` or CLUSTER/COPY=down; may be given several times")
	c.Flags().VarP(&format, "output", "o", "output `format`: "+strings.Join(output.Formats, ", "))
	return c
}

// supposed reads what --as-if says: the places that are supposed to be down.
func supposed(asIf []string) (down []string, err error) {
	for _, s := range asIf {
		place, is, ok := strings.Cut(s, "=")
		if !ok || is != "down" || place == "" {
			return nil, usage{fmt.Errorf("--as-if %q: want CLUSTER=down or CLUSTER/COPY=down; for several places, give --as-if for each", s)}
		}
		down = append(down, place)
	}
	return down, nil
}

// codeForm is how a code of Isthmus is written.
var codeForm = regexp.MustCompile(`(?i)^IST\d+$`)

func codes() string {
	var all []string
	for _, e := range errcode.All() {
		all = append(all, e.Code)
	}
	return list(all)
}

func explainCode(w io.Writer, code string) error {
	if c, is := check.Lookup(code); is {
		_, err := fmt.Fprintf(w, "%s  %s (isthmus check)\n\nExpected: %s.\n\nWhat to do: %s\n", c.ID, c.Title, c.Expected, c.Fix)
		return err
	}
	e, ok := errcode.Lookup(code)
	switch {
	case !ok && codeForm.MatchString(code):
		return usage{fmt.Errorf("no such code, %s; the codes are in docs/reference/sidecar.md: %s; those of checks: isthmus check --list", code, codes())}
	case !ok && strings.Contains(code, "/"):
		return usage{fmt.Errorf("which service? isthmus explain %s SERVICE.NAMESPACE, for example checkout.shop", code)}
	case !ok:
		return usage{fmt.Errorf("%q is neither an error code (ISTnnnn) nor a workload with a service (CLUSTER/WORKLOAD SERVICE.NAMESPACE)", code)}
	}
	_, err := fmt.Fprintf(w, "%s  %s\n\n%s\n\nWhat to do: %s\n", e.Code, e.Title, e.Meaning, e.Fix)
	return err
}

// asker asks an admin listener for a path, and returns the status of HTTP and the body.
type asker func(ctx context.Context, path string, query url.Values) (int, []byte, error)

// sidecarAdmin finds the admin listener of a workload's sidecar: from its cluster's control, or, when that is dead and the
// cluster is in a playground, from the playground.
func (g *global) sidecarAdmin(ctx context.Context, chatter io.Writer, workload string) (asker, error) {
	cluster, name, ok := strings.Cut(workload, "/")
	if !ok {
		return nil, usage{fmt.Errorf("workload %q: want CLUSTER/WORKLOAD, for example eu/web", workload)}
	}
	targets, err := g.targets()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(targets, func(t target) bool { return t.cluster == cluster }); i >= 0 {
		targets = targets[i : i+1] // a playground knows which control it is: no other one makes us wait
	}
	// Half the time: a control that hangs leaves the sidecar the other half.
	all := askEach(ctx, g.timeout/2, targets, (*admin.Client).Proxies)
	for _, a := range all {
		if a.err == nil && a.status.Cluster == cluster {
			p, err := sidecarIn(cluster, name, a.answer)
			if err != nil {
				return nil, err
			}
			if a.client.kube != nil {
				return inPod(a.client.kube, p)
			}
			if a.client.cluster != "" {
				if ask, err := g.inPlayground(workload); err == nil {
					return ask, nil
				}
			}
			return listener(p.Admin, nil), nil
		}
	}
	if slices.ContainsFunc(targets, func(t target) bool { return t.cluster == cluster }) {
		if ask, err := g.inPlayground(workload); err == nil {
			_, _ = fmt.Fprintf(chatter, "isthmus: the control of %s does not answer; asking the sidecar that the playground knows\n", cluster)
			return ask, nil
		}
	}
	return nil, noCluster(cluster, all)
}

// inPlayground asks the sidecar of a workload of the playground, from where it is.
func (g *global) inPlayground(workload string) (asker, error) {
	p, err := g.open()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	address, err := p.AdminOf(workload)
	if err != nil {
		return nil, err
	}
	return listener(address, p.DialerOf(workload)), nil
}

// sidecarIn finds the sidecar of a workload, "web" or "shop/web".
func sidecarIn(cluster, name string, proxies []admin.Proxy) (admin.Proxy, error) {
	var names []string
	for _, p := range proxies {
		if p.Program != "sidecar" {
			continue
		}
		names = append(names, cluster+"/"+p.Name)
		if p.Name == name || strings.HasSuffix(p.Name, "/"+name) {
			if p.Admin == "" {
				return p, finding{fmt.Sprintf("the sidecar of %s/%s has no admin listener; give it listen.admin", cluster, p.Name)}
			}
			return p, nil
		}
	}
	slices.Sort(names)
	return admin.Proxy{}, usage{fmt.Errorf("cluster %s knows no sidecar of %q; it knows: %s", cluster, name, list(names))}
}

// listener asks an admin listener at an address; dial is nil where this machine reaches it.
func listener(address string, dial func(ctx context.Context, network, address string) (net.Conn, error)) asker {
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	return func(ctx context.Context, path string, query url.Values) (int, []byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path+"?"+query.Encode(), http.NoBody)
		if err != nil {
			return 0, nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, nil, fmt.Errorf("%w: %w", admin.ErrUnreachable, err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxExplanation))
		if err != nil {
			return 0, nil, fmt.Errorf("%w: %w", admin.ErrUnreachable, err)
		}
		return resp.StatusCode, b, nil
	}
}

// inPod asks the sidecar of a Pod over a forwarded port. To the sidecar that is a question from inside the Pod: others it does not answer.
func inPod(cluster *kubeaccess.Cluster, p admin.Proxy) (asker, error) {
	namespace, pod, is := strings.Cut(p.Name, "/")
	_, text, err := net.SplitHostPort(p.Admin)
	port, errPort := strconv.ParseUint(text, 10, 16)
	if err != nil || errPort != nil || !is {
		return nil, fmt.Errorf("the sidecar of %s says that its admin listener is at %q; want namespace/Pod and host:port", p.Name, p.Admin)
	}
	return listener(net.JoinHostPort("127.0.0.1", text), func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := cluster.DialPort(ctx, namespace, pod, uint16(port)) //nolint:gosec // G115: it was parsed as one of 16 bits
		return conn, cluster.Explain("forward a port of Pod "+namespace+"/"+pod+" (create pods/portforward)", err)
	}), nil
}

// saysError returns what an answer of ours says that is wrong; empty: it is none.
func saysError(b []byte) string {
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(b, &said) != nil {
		return ""
	}
	return said.Error
}

// askSidecar returns the explanation and, for programs, all that the sidecar said.
// portText is how a sidecar is asked for a port; empty: for the usual one.
func portText(port uint16, udp bool) string {
	text := ""
	if port != 0 {
		text = strconv.Itoa(int(port))
	}
	if udp {
		text += sidecarUDP
	}
	return text
}

// sidecarUDP follows the number of a port for datagrams.
const sidecarUDP = "/udp"

func askSidecar(ctx context.Context, ask asker, to, port string, down []string) (topology.Explanation, any, error) {
	var x topology.Explanation
	query := url.Values{"to": {to}}
	if port != "" {
		query.Set("port", port)
	}
	if len(down) > 0 {
		query["down"] = down
	}
	status, b, err := ask(ctx, "/explain", query)
	if err != nil {
		return x, nil, err
	}
	if status == http.StatusBadRequest {
		return x, nil, usage{errors.New(cmp.Or(saysError(b), strings.TrimSpace(string(b))))}
	}
	if status != http.StatusOK {
		if said := saysError(b); said != "" {
			return x, nil, errors.New(said)
		}
		return x, nil, fmt.Errorf("%d %s: %s", status, http.StatusText(status), strings.TrimSpace(string(b)))
	}
	var raw any
	return x, raw, errors.Join(json.Unmarshal(b, &x), json.Unmarshal(b, &raw))
}

func printExplanation(w io.Writer, format output.Format, x topology.Explanation) error {
	policy := "the default order (same zone, own cluster, same region, nearest)"
	if x.Policy != "" {
		policy = "policy " + x.Policy
	}
	port := fmt.Sprintf("port %d", x.Port)
	if x.Protocol != "" {
		port += " (" + string(x.Protocol) + ")"
	}
	_, err := fmt.Fprintf(w, "%s/%s calls %s %s, by %s:\n\n", x.From.Cluster, x.From.Workload, x.Service, port, policy)
	if err != nil {
		return err
	}
	t := output.Table{
		Columns: []string{"RANK", "TIER", "TARGET", "SHARE", "READY", "STATE", "WHY"},
		Wide:    []string{"ADDRESS", "SHARE IN TIER"},
		Empty:   "no copies",
	}
	supposing := len(x.AsIf) > 0
	if supposing {
		t.Columns = slices.Insert(t.Columns, 4, "AS IF")
	}
	for _, r := range x.Rows {
		rank := "-"
		if r.Rank > 0 {
			rank = strconv.Itoa(r.Rank)
		}
		why := strings.Join(append([]string{r.Reason}, r.Limits...), "; ")
		if r.Stale {
			why += " (its cluster's last word is old)"
		}
		switch wait := time.Until(r.NextTry); {
		case r.NextTry.IsZero():
		case wait <= 0:
			why += " (the next request that can be repeated tries it)"
		default:
			why += fmt.Sprintf(" (tried again in %s)", max(wait.Round(time.Second), time.Second))
		}
		target := "cluster " + r.Cluster.String()
		if r.Endpoint != "" {
			target = r.Cluster.String() + "/" + r.Endpoint
		}
		row := []string{
			rank, r.Tier, target, percent(r.Traffic), strconv.Itoa(r.Ready), strings.ReplaceAll(string(r.State), "_", " "), why,
			r.Address, percent(r.Share),
		}
		if supposing {
			then := "-"
			if r.AsIf != nil {
				then = percent(r.AsIf.Traffic)
			}
			row = slices.Insert(row, 4, then)
		}
		t.Row(row...)
	}
	if err = output.Write(w, format, nil, func() output.Table { return t }); err != nil {
		return err
	}
	if supposing {
		if _, err = fmt.Fprintf(w, "\nAS IF is the share if this were down: %s.\n", list(x.AsIf)); err != nil {
			return err
		}
	}
	if x.Error != nil {
		_, err = fmt.Fprintf(w, "\nNowhere to go: %s\n", x.Error.Message)
	}
	return err
}

func percent(f float64) string {
	return strconv.FormatFloat(math.Round(1000*f)/10, 'f', -1, 64) + "%"
}
