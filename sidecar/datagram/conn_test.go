package datagram

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/datagram"
)

// scripted is a connection from which bytes can be read.
type scripted struct {
	net.Conn
	io.Reader
}

func (s scripted) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func record(body string) []byte { return append(datagram.AppendHeader(nil, len(body)), body...) }

func TestConn(t *testing.T) {
	const tls = "\x17\x03\x03\x00\x05hello"
	stream := tls + string(record("early")) + tls + string(record("")) + string(record("two"))
	c := NewConn(scripted{Reader: bytes.NewReader([]byte(stream))})
	c.Start()
	var got []string
	first := make([]byte, len(tls))
	if _, err := io.ReadFull(c, first); err != nil || string(first) != tls {
		t.Fatalf("%q, %v", first, err)
	}
	c.Deliver(func(b []byte) { got = append(got, string(b)) })
	rest, err := io.ReadAll(c)
	if err != nil || string(rest) != tls {
		t.Errorf("TLS's: %q, %v", rest, err)
	}
	if len(got) != 3 || got[0] != "early" || got[1] != "" || got[2] != "two" {
		t.Errorf("datagrams: %q", got)
	}
	for n := 1; n < len(stream); n++ {
		cut := NewConn(scripted{Reader: bytes.NewReader([]byte(stream[:n]))})
		cut.Start()
		_, err := io.ReadAll(cut)
		at := n == len(tls) || n == len(tls)+10 || n == 2*len(tls)+10 || n == 2*len(tls)+15
		if at != (err == nil) || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

// Until it is started it is the connection itself.
func TestConnNotStarted(t *testing.T) {
	c := NewConn(scripted{Reader: bytes.NewReader([]byte("anything"))})
	if b, err := io.ReadAll(c); err != nil || string(b) != "anything" {
		t.Errorf("%q, %v", b, err)
	}
}

func FuzzConn(f *testing.F) {
	f.Add(append(record("one"), "\x17\x03\x03\x00\x05hello"...))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewConn(scripted{Reader: bytes.NewReader(b)})
		c.Start()
		delivered := 0
		c.Deliver(func(p []byte) { delivered += datagram.Header + len(p) })
		rest, _ := io.ReadAll(c)
		if delivered+len(rest) > len(b) {
			t.Errorf("%d bytes of datagrams and %d of TLS, of %d", delivered, len(rest), len(b))
		}
	})
}
