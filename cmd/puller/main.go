// Command puller pulls one image at a given instant, as a container engine does: the manifest by tag, then the config and
// the layers, three at a time, each hashed while it arrives and then forgotten. It prints how many nanoseconds after the
// instant the first byte of a layer and the last byte of all came. The network lab runs one in every host: a client made
// of shell commands costs more processor time to start than a small image to send.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"hash"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// maxManifest is how large a manifest may be by the specification's advice.
const maxManifest = 4 << 20

func main() {
	at := flag.Int64("at", 0, "the instant, in nanoseconds of Unix time")
	parallel := flag.Int("parallel", 3, "how many blobs are fetched at once")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: puller [flags] http://HOST:PORT/v2/REPOSITORY TAG")
		os.Exit(2)
	}
	p := &puller{repository: flag.Arg(0), start: time.Unix(0, *at)}
	time.Sleep(time.Until(p.start))
	if err := p.image(context.Background(), flag.Arg(1), *parallel); err != nil {
		log.Fatal(err)
	}
	fmt.Println(p.first.Nanoseconds(), time.Since(p.start).Nanoseconds())
}

type puller struct {
	repository string
	start      time.Time
	once       sync.Once
	first      time.Duration // from start to the first byte of a layer
}

func (p *puller) image(ctx context.Context, tag string, parallel int) error {
	body, err := p.get(ctx, "/manifests/"+tag)
	if err != nil {
		return err
	}
	var m v1.Manifest
	err = json.NewDecoder(io.LimitReader(body, maxManifest)).Decode(&m)
	_ = body.Close()
	if err != nil {
		return fmt.Errorf("read manifest %s: %w", tag, err)
	}
	pulls, ctx := errgroup.WithContext(ctx)
	pulls.SetLimit(parallel)
	pulls.Go(func() error { return p.blob(ctx, m.Config, sha256.New()) })
	for _, layer := range m.Layers {
		pulls.Go(func() error { return p.blob(ctx, layer, &timed{Hash: sha256.New(), p: p}) })
	}
	return pulls.Wait()
}

func (p *puller) get(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.repository+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", v1.MediaTypeImageManifest)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("get %s: %s", path, resp.Status)
	}
	return resp.Body, nil
}

// blob fetches what d describes into sum.
func (p *puller) blob(ctx context.Context, d v1.Descriptor, sum hash.Hash) error {
	body, err := p.get(ctx, "/blobs/"+d.Digest.String())
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, body, make([]byte, 256<<10)); err != nil {
		return fmt.Errorf("read blob %s: %w", d.Digest, err)
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); got != d.Digest.String() {
		return fmt.Errorf("blob %s has digest %s", d.Digest, got)
	}
	return nil
}

// timed notes when the first byte of all layers came.
type timed struct {
	hash.Hash
	p *puller
}

func (t *timed) Write(b []byte) (int, error) {
	t.p.once.Do(func() { t.p.first = time.Since(t.p.start) })
	return t.Hash.Write(b)
}
