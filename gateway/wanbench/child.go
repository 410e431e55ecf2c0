package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// child is a part of this program in a process of its own.
func child(ctx context.Context, args []string) error {
	switch {
	case args[0] == "server" && len(args) == 2:
		return serve(ctx, args[1])
	case args[0] == "h2-far" && len(args) == 4:
		return h2Far(ctx, args[1], args[2], args[3])
	case args[0] == "h2-near" && len(args) == 4:
		return h2Near(ctx, args[1], args[2], args[3])
	case args[0] == "load" && len(args) == 4:
		return runLoad(ctx, args[1], args[2], args[3])
	default:
		return fmt.Errorf("%q is not known", args)
	}
}

// requestSize is what a request takes; its first bytes say how many come back.
const requestSize = 128

// serve answers requests.
func serve(ctx context.Context, address string) error {
	return accept(ctx, address, func(c net.Conn) {
		request, answer := make([]byte, requestSize), make([]byte, 256<<10)
		for {
			if _, err := io.ReadFull(c, request); err != nil {
				return
			}
			for left := binary.BigEndian.Uint64(request); left > 0; {
				n, err := c.Write(answer[:min(left, uint64(len(answer)))])
				if err != nil {
					return
				}
				left -= uint64(n)
			}
		}
	})
}

func accept(ctx context.Context, address string, f func(net.Conn)) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			return nil //nolint:nilerr // the end
		}
		go func() {
			f(c)
			_ = c.Close()
		}()
	}
}

// h2Near gives each connection a stream of one HTTP/2 connection.
func h2Near(ctx context.Context, dir, address, far string) error {
	config, err := tlsConfig(dir)
	if err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, Protocols: protocols, IdleConnTimeout: cutFor / 2, HTTP2: &http.HTTP2Config{
		MaxReceiveBufferPerStream: 4 << 20, MaxReceiveBufferPerConnection: 16 << 20,
	}}}
	return accept(ctx, address, func(c net.Conn) {
		r, w := io.Pipe()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+far+"/", r)
		if err != nil {
			return
		}
		go func() {
			_, e := io.Copy(w, c)
			_ = w.CloseWithError(e)
		}()
		resp, err := client.Do(req)
		if err != nil {
			return
		}
		defer func() { _ = resp.Body.Close() }()
		_, _ = io.Copy(c, resp.Body)
	})
}

// h2Far connects each stream to the server.
func h2Far(ctx context.Context, dir, address, to string) error {
	config, err := tlsConfig(dir)
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, TLSConfig: config,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000, MaxReceiveBufferPerStream: 4 << 20, MaxReceiveBufferPerConnection: 16 << 20},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := new(net.Dialer).DialContext(r.Context(), "tcp", to)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer func() { _ = c.Close() }()
			go func() {
				_, _ = io.Copy(c, r.Body)
				_ = c.Close()
			}()
			flush := http.NewResponseController(w)
			w.WriteHeader(http.StatusOK)
			_ = flush.Flush()
			buffer := make([]byte, 64<<10)
			for {
				n, err := c.Read(buffer)
				if _, e := w.Write(buffer[:n]); err != nil || e != nil || flush.Flush() != nil {
					return
				}
			}
		}),
	}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	if err := s.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// What the others' mutual TLS is made of.
const (
	certificateFile = "pair.pem"
	authorityFile   = "authority.pem"
)

// makeCertificates makes an authority and one certificate for both ends.
func makeCertificates(dir string) error {
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "wanbench authority"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "wanbench"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter, DNSNames: []string{"wanbench"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	rootKey, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leafKey, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	rootDER, err1 := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	leafDER, err2 := x509.CreateCertificate(rand.Reader, leaf, root, &leafKey.PublicKey, rootKey)
	keyDER, err3 := x509.MarshalPKCS8PrivateKey(leafKey)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return errors.Join(
		os.WriteFile(filepath.Join(dir, authorityFile), block("CERTIFICATE", rootDER), 0o600),
		os.WriteFile(filepath.Join(dir, certificateFile), append(block("CERTIFICATE", leafDER), block("PRIVATE KEY", keyDER)...), 0o600),
	)
}

func tlsConfig(dir string) (*tls.Config, error) {
	pair := filepath.Join(dir, certificateFile)
	certificate, err := tls.LoadX509KeyPair(pair, pair)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, authorityFile))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{
		Certificates: []tls.Certificate{certificate}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		ServerName: "wanbench", MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"h2"},
	}, nil
}
