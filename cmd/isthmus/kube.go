package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/internal/check"
	"github.com/isthmus-mesh/isthmus/internal/kubeaccess"
)

// Where the chart puts control.
const (
	controlPod       = "isthmus-control-0"
	controlContainer = "control"
	controlSocket    = "/run/isthmus/control.sock"
)

// source is where the contexts are.
func (g *global) source() kubeaccess.Source { return kubeaccess.Source{Kubeconfig: g.kubeconfig} }

// kubeTarget returns the control of a Kubernetes cluster. Its admin socket is reached by an exec into its Pod, so that whoever may do
// that there (the API server decides) may administer it, and nobody else.
func (g *global) kubeTarget(cluster *kubeaccess.Cluster) target {
	client := admin.NewClientOver(fmt.Sprintf("context %q", cluster.Context), func(ctx context.Context) (net.Conn, error) {
		return g.dialControl(ctx, cluster)
	})
	g.opened = append(g.opened, client)
	return target{Client: client, kube: cluster}
}

// dialControl connects with the admin socket of a cluster's control. Its errors say why it could not, and what to do.
func (g *global) dialControl(ctx context.Context, cluster *kubeaccess.Cluster) (net.Conn, error) {
	// What remains of the time-out is for finding out why.
	dialling, cancel := context.WithTimeout(ctx, g.timeout*3/4)
	defer cancel()
	conn, err := cluster.DialExec(dialling, g.namespace, controlPod, controlContainer, "/isthmus", "admin-pipe", "--socket", controlSocket)
	if err == nil {
		return conn, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, g.whyNoControl(ctx, cluster, err)
}

// whyNoControl says why control could not be reached: by the error itself, else by how its Pod is.
func (g *global) whyNoControl(ctx context.Context, cluster *kubeaccess.Cluster, err error) error {
	var ended *kubeaccess.ExecError
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("the API server does not let you exec into its Pod (a role with create on pods/exec in namespace %s allows it): %w",
			g.namespace, err)
	case apierrors.IsUnauthorized(err), errors.Is(err, context.Canceled):
		return cluster.Explain("exec into "+controlPod, err)
	}
	set, errSet := cluster.Clientset()
	if errSet != nil {
		return errSet
	}
	pod, errPod := set.CoreV1().Pods(g.namespace).Get(ctx, controlPod, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(errPod):
		return fmt.Errorf("no Pod %[1]s in namespace %[2]s: Isthmus is not installed there, or elsewhere (--system-namespace). Install it: "+
			"isthmus install --context %[3]s", controlPod, g.namespace, shellQuote(cluster.Context))
	case errPod == nil && check.PodTrouble(pod) != "":
		return fmt.Errorf("its Pod is not ready: %s (%w). See: kubectl --context %s -n %s describe pod %s", check.PodTrouble(pod), err,
			shellQuote(cluster.Context), g.namespace, controlPod)
	case errors.As(err, &ended) && strings.Contains(ended.Stderr, "unknown command"):
		return fmt.Errorf("its version has no admin-pipe; use the isthmus of that version: %w", err)
	case errors.As(err, &ended):
		return err
	default:
		return cluster.Explain("exec into "+controlPod, err)
	}
}
