package kubeaccess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// DialPort connects with a port of a Pod, as kubectl port-forward does: the Pod takes it for a connection of its own. Whoever may create
// pods/portforward there may do this. ctx bounds the dialling, not the connection. That nobody listens there is an error of Read.
func (c *Cluster) DialPort(ctx context.Context, namespace, pod string, port uint16) (net.Conn, error) {
	var refused error
	dialer, err := c.forwarder(namespace, pod, &refused)
	if err != nil {
		return nil, err
	}
	type dialled struct {
		conn httpstream.Connection
		err  error
	}
	answer := make(chan dialled, 1)
	go func() { // what dials knows no context: whoever gave it up leaves the connection to be closed
		conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		if err == nil && ctx.Err() != nil {
			_ = conn.Close()
		}
		answer <- dialled{conn, err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case a := <-answer:
		switch {
		case a.err == nil:
			return forward(a.conn, port)
		case refused != nil && strings.Contains(a.err.Error(), refused.Error()):
			return nil, refused // the same words, with their type
		default:
			return nil, a.err
		}
	}
}

// forwarder tries as executor does.
func (c *Cluster) forwarder(namespace, pod string, refused *error) (httpstream.Dialer, error) {
	set, err := c.Clientset()
	if err != nil {
		return nil, err
	}
	url := set.CoreV1().RESTClient().Post().Resource("pods").Name(pod).Namespace(namespace).SubResource("portforward").URL()
	web, err := portforward.NewSPDYOverWebsocketDialerForStreamingWithLogger(logr.Discard(), url, c.Config)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", c.Context, err)
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	return portforward.NewFallbackDialerForStreaming(web, old, fallBack(refused)), nil
}

// forwarded is the near end of a forwarded connection.
type forwarded struct {
	net.Conn
	streams httpstream.Connection
	all     sync.WaitGroup // that copy
	failed  chan struct{}  // closed when err is known
	err     error
}

// forward makes one connection of two streams.
func forward(streams httpstream.Connection, port uint16) (net.Conn, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(int(port)))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	trouble, err := streams.CreateStream(headers)
	if err != nil {
		return nil, errors.Join(err, streams.Close())
	}
	_ = trouble.Close() // our half: only the other end tells of trouble
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := streams.CreateStream(headers)
	if err != nil {
		return nil, errors.Join(err, streams.Close())
	}
	near, far := net.Pipe()
	f := &forwarded{Conn: near, streams: streams, failed: make(chan struct{})}
	f.all.Go(func() {
		_, _ = io.Copy(data, far)
		_ = data.Close()
	})
	f.all.Go(func() {
		_, _ = io.Copy(far, data)
		_ = far.Close()
	})
	f.all.Go(func() {
		defer close(f.failed)
		if said, _ := io.ReadAll(io.LimitReader(trouble, maxComplaint)); len(said) > 0 {
			f.err = errors.New(strings.TrimSpace(string(said)))
		}
	})
	return f, nil
}

// Read returns at the end what the other end said about it.
func (f *forwarded) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		<-f.failed
		if f.err != nil {
			err = f.err
		}
	}
	return n, err
}

// Close ends the connection, and returns when nothing is copied any more.
func (f *forwarded) Close() error {
	err := errors.Join(f.Conn.Close(), f.streams.Close())
	f.all.Wait()
	return err
}
