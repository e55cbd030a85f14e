package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// Limits of the public port against connections that send little or nothing.
// Bodies have rolling deadlines of their own, in package api.
const (
	headerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	maxHeader  = 64 << 10
)

// listen opens a TCP port, and says which flag to change where it cannot.
func listen(flag, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err == nil {
		return ln, nil
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(addr)
		hint := ""
		if port == "5000" {
			hint = " (on a Mac, AirPlay Receiver holds port 5000)"
		}
		return nil, fmt.Errorf("--%s %s: the port is in use%s; choose another with --%s", flag, addr, hint, flag)
	}
	return nil, fmt.Errorf("--%s %s: %w", flag, addr, err)
}

// publicServer returns the server of the public port, without its handler's
// routes knowing whether TLS is on.
func publicServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// keyPair serves the public certificate and reads it again when its files
// change, so that a renewal needs no restart. A renewal that is half-written
// or does not match is logged, and the old pair stays in use.
type keyPair struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex // guards the fields below
	pair    *tls.Certificate
	stamp   [2]time.Time
	checked time.Time
}

// loadKeyPair reads the files once; an error here is the operator's.
func loadKeyPair(cert, key string, log *slog.Logger) (*keyPair, error) {
	k := &keyPair{cert: cert, key: key, log: log}
	if err := k.read(); err != nil {
		return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
	}
	return k, nil
}

func (k *keyPair) read() error {
	stamp, err := k.stamps()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(k.cert, k.key)
	if err != nil {
		return err
	}
	k.pair, k.stamp = &pair, stamp
	return nil
}

func (k *keyPair) stamps() (s [2]time.Time, err error) {
	for i, name := range []string{k.cert, k.key} {
		info, err := os.Stat(name)
		if err != nil {
			return s, err
		}
		s[i] = info.ModTime()
	}
	return s, nil
}

// get is tls.Config.GetCertificate. The files are looked at once a second at
// most, however many handshakes there are.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Sub(k.checked) > time.Second {
		k.checked = now
		if stamp, err := k.stamps(); err == nil && stamp != k.stamp {
			if err := k.read(); err != nil {
				k.log.Warn("the new TLS certificate is not usable; the old one stays", "error", err)
			} else {
				k.log.Info("TLS certificate reloaded", "file", k.cert)
			}
		}
	}
	return k.pair, nil
}

// exposed reports whether addr is reachable from beyond this machine.
func exposed(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return !ok || !tcp.IP.IsLoopback()
}

// config is the TLS configuration of the public port.
func (k *keyPair) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: k.get, NextProtos: []string{"h2", "http/1.1"}}
}
