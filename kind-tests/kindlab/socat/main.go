// Socat stands in for the program of that name, as far as the conformance suite of the Multi-Cluster Services API uses it: it listens on a port and
// answers whoever connects, or sends a datagram, with what a command prints.
//
//	socat [-v]... TCP-LISTEN:42,crlf,reuseaddr,fork "SYSTEM:echo pod ip 10.1.0.9"
package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		slog.Error("socat", "error", err)
		os.Exit(2)
	}
}

func run(args []string) error {
	for len(args) > 0 && args[0] == "-v" {
		args = args[1:]
	}
	if len(args) != 2 {
		return fmt.Errorf("want two addresses, have %q", args)
	}
	listen, options, _ := strings.Cut(args[0], ",")
	kind, port, _ := strings.Cut(listen, ":")
	answer, ok := strings.CutPrefix(args[1], "SYSTEM:echo ")
	if !ok {
		return fmt.Errorf("%s: only SYSTEM:echo is known", args[1])
	}
	answer += "\n"
	if strings.Contains(","+options+",", ",crlf,") {
		answer = strings.ReplaceAll(answer, "\n", "\r\n")
	}
	ended := make(chan error, 1)
	switch kind {
	case "TCP-LISTEN":
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go func() { ended <- serve(l, answer) }()
	case "UDP-LISTEN":
		c, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go func() { ended <- answerDatagrams(c, answer) }()
	default:
		return fmt.Errorf("%s: only TCP-LISTEN and UDP-LISTEN are known", kind)
	}
	// The first process of a container is not ended by a signal that it does not ask for.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	select {
	case <-stop:
		return nil
	case err := <-ended:
		return err
	}
}

func serve(l net.Listener, answer string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go respond(c.(*net.TCPConn), answer)
	}
}

func respond(c *net.TCPConn, answer string) {
	defer func() { _ = c.Close() }()
	_, err := c.Write([]byte(answer))
	// Closed with something unread in it, a connection is reset, and the answer may be lost with it.
	_ = c.CloseWrite()
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	buffer := make([]byte, 4096)
	for err == nil {
		_, err = c.Read(buffer)
	}
}

func answerDatagrams(c net.PacketConn, answer string) error {
	buffer := make([]byte, 64<<10)
	for {
		_, from, err := c.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if _, err = c.WriteTo([]byte(answer), from); err != nil {
			slog.Error("answer", "error", err)
		}
	}
}
