// Command balancer sends every single HTTP request to the next backend, round robin. It has no health checks, no retries
// and no affinity on purpose: the checks put it before a mesh to show that any node can answer any request of any client,
// the next chunk of an upload included.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	backends := flag.String("backends", "", "host:port of each backend, separated by commas")
	cert := flag.String("tls-cert", "", "certificate file for the own port; plain HTTP without it")
	key := flag.String("tls-key", "", "key file for the own port")
	ca := flag.String("ca", "", "PEM file of the authorities that the backends' certificates are checked with; plain HTTP to them without it")
	flag.Parse()
	if *backends == "" || (*cert == "") != (*key == "") || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	trust, err := authorities(*ca)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *listen, *cert, *key, newBalancer(strings.Split(*backends, ","), trust)); err != nil {
		log.Fatal(err)
	}
}

// authorities reads a PEM file of certificates; without a file there are none.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

// run serves until ctx ends, with TLS where there is a certificate, then says how many requests each backend was given.
func run(ctx context.Context, listen, cert, key string, b *balancer) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: b, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() {
		if cert != "" {
			served <- srv.ServeTLS(l, cert, key)
		} else {
			served <- srv.Serve(l)
		}
	}()
	log.Printf("balancing %s over %s", l.Addr(), strings.Join(b.backends, ", "))
	select {
	case err = <-served:
		return err
	case <-ctx.Done():
	}
	if err = srv.Close(); err != nil {
		return err
	}
	if err = <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	log.Printf("requests given to each backend: %s", b.shares())
	return nil
}

// balancer counts requests; the count alone decides which backend is next.
type balancer struct {
	backends []string
	scheme   string // of the backends
	requests atomic.Uint64
	proxy    httputil.ReverseProxy
}

// newBalancer returns one that speaks TLS to backends of the authorities in trust, and plain HTTP where trust is nil.
func newBalancer(backends []string, trust *x509.CertPool) *balancer {
	b := &balancer{backends: backends, scheme: "http"}
	if trust != nil {
		b.scheme = "https"
	}
	b.proxy = httputil.ReverseProxy{
		Rewrite: b.rewrite,
		Transport: &http.Transport{
			DisableCompression:    true, // bytes pass as they are
			ExpectContinueTimeout: 5 * time.Second,
			MaxIdleConnsPerHost:   64,
			TLSClientConfig:       &tls.Config{RootCAs: trust},
		},
		FlushInterval: -1, // a growing answer must not wait in a buffer here
	}
	return b
}

func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.proxy.ServeHTTP(w, r)
}

// rewrite keeps path, query and Host as the client sent them: the backend's Location headers then lead back here.
func (b *balancer) rewrite(r *httputil.ProxyRequest) {
	next := (b.requests.Add(1) - 1) % uint64(len(b.backends))
	r.Out.URL.Scheme = b.scheme
	r.Out.URL.Host = b.backends[next]
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	r.Out.Host = r.In.Host
}

func (b *balancer) shares() string {
	n, each := b.requests.Load(), uint64(len(b.backends))
	counts := make([]string, each)
	for i := range each {
		counts[i] = fmt.Sprint((n + each - 1 - i) / each)
	}
	return strings.Join(counts, " ")
}
