// Command balancer sends every single HTTP request to the next backend, round robin. It has no health checks, no retries
// and no affinity on purpose: the checks put it before a mesh to show that any node can answer any request of any client,
// the next chunk of an upload included.
package main

import (
	"context"
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
	flag.Parse()
	if *backends == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *listen, strings.Split(*backends, ",")); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends, then says how many requests each backend was given.
func run(ctx context.Context, listen string, backends []string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	b := newBalancer(backends)
	srv := &http.Server{Handler: b, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	log.Printf("balancing %s over %s", l.Addr(), strings.Join(backends, ", "))
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
	requests atomic.Uint64
	proxy    httputil.ReverseProxy
}

func newBalancer(backends []string) *balancer {
	b := &balancer{backends: backends}
	b.proxy = httputil.ReverseProxy{
		Rewrite: b.rewrite,
		Transport: &http.Transport{
			DisableCompression:    true, // bytes pass as they are
			ExpectContinueTimeout: 5 * time.Second,
			MaxIdleConnsPerHost:   64,
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
	r.Out.URL.Scheme = "http"
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
