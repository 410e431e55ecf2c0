package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/lab/sample"
)

// keptStream is what a gRPC client does that keeps a stream open: it opens a new one when the old one ends. Beside it, it makes calls.
type keptStream struct {
	cc     *grpc.ClientConn
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu     sync.Mutex
	with   string   // guarded by mu; the cluster that the stream is with; empty: none
	ended  []string // guarded by mu; why streams ended, all as they should
	calls  int      // guarded by mu; that were answered
	failed []string // guarded by mu; calls that failed, and streams that ended otherwise
}

func (m *mesh) stream(ts *testscript.TestScript, args []string) error {
	if len(args) == 4 && args[0] == "keep" {
		return m.keepStream(args[1], args[2], args[3])
	}
	if len(args) < 2 || m.kept[args[1]] == nil {
		return errUsage
	}
	k := m.kept[args[1]]
	switch {
	case args[0] == "with" && len(args) == 3:
		return k.until("with "+args[2], func() bool { return k.with == args[2] })
	case args[0] == "ended" && len(args) == 3:
		n, err := strconv.Atoi(args[2])
		if err != nil {
			return errUsage
		}
		return k.until("ended "+args[2]+" times", func() bool { return len(k.ended) >= n })
	case args[0] == "close" && len(args) == 2:
		err := k.close()
		ts.Logf("%d calls; streams ended: %s", k.calls, strings.Join(k.ended, "; "))
		return err
	default:
		return errUsage
	}
}

func (m *mesh) keepStream(name, from, address string) error {
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(_ context.Context, address string) (net.Conn, error) { return m.tunnel(from, address) }))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(m.ctx)
	k := &keptStream{cc: cc, cancel: cancel}
	m.kept[name] = k
	k.wait.Go(func() { k.call(ctx) })
	k.wait.Go(func() {
		for ctx.Err() == nil {
			err := k.talk(ctx)
			if ctx.Err() == nil {
				k.note(err)
			}
		}
	})
	return k.until("open", func() bool { return k.with != "" })
}

// talk opens a stream, and speaks until it ends.
func (k *keptStream) talk(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := k.cc.NewStream(ctx, &sample.Chat, sample.ChatMethod)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	for i := 0; ; i++ {
		said, heard := &healthv1.HealthCheckRequest{Service: strconv.Itoa(i)}, new(healthv1.HealthCheckRequest)
		_ = s.SendMsg(said) // RecvMsg says why not
		if err := s.RecvMsg(heard); err != nil {
			return err
		}
		if heard.GetService() != said.GetService() {
			return fmt.Errorf("said %q, heard %q", said.GetService(), heard.GetService())
		}
		if i == 0 {
			header, err := s.Header()
			if err != nil {
				return err
			}
			k.mu.Lock()
			k.with = strings.Join(header.Get(sample.HeaderCluster), ",")
			k.mu.Unlock()
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// note takes in how a stream ended.
func (k *keptStream) note(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.with = ""
	words := status.Convert(err).Message()
	if status.Code(err) != codes.Unavailable || !strings.Contains(words, "(IST") {
		k.failed = append(k.failed, "stream: "+err.Error())
		return
	}
	k.ended = append(k.ended, words)
}

// call makes calls, fifty a second.
func (k *keptStream) call(ctx context.Context) {
	client := healthv1.NewHealthClient(k.cc)
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, patience)
		_, err := client.Check(one, &healthv1.HealthCheckRequest{})
		cancel()
		k.mu.Lock()
		switch {
		case err == nil:
			k.calls++
		case ctx.Err() == nil:
			k.failed = append(k.failed, "call: "+err.Error())
		}
		k.mu.Unlock()
		time.Sleep(20 * time.Millisecond)
	}
}

// until waits; is is called with k.mu held.
func (k *keptStream) until(what string, is func() bool) error {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		k.mu.Lock()
		done, failed := is(), len(k.failed)
		k.mu.Unlock()
		switch {
		case done:
			return nil
		case failed > 0:
			return errors.New(strings.Join(k.failed, "; "))
		case time.Now().After(end):
			return fmt.Errorf("not %s within %s: with %q, ended %d times, %d calls", what, patience, k.with, len(k.ended), k.calls)
		}
	}
}

// close ends it, and says what was not as it should be.
func (k *keptStream) close() error {
	k.cancel()
	_ = k.cc.Close()
	k.wait.Wait()
	switch {
	case len(k.failed) > 0:
		return fmt.Errorf("%d of %d: %s", len(k.failed), len(k.failed)+k.calls, strings.Join(k.failed[:min(3, len(k.failed))], "; "))
	case k.calls == 0:
		return errors.New("no call was made")
	default:
		return nil
	}
}
