package disk

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := newStore(b, Config{})
			data, d := content(size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Put(b.Context(), d, int64(size), bytes.NewReader(data)); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				s.forget(b, d) // replacing a file costs the time to free its blocks
				if err := s.sys.syncFolder(s.fillsDir); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkPutParallel shows what grouping saves: all commits share few folders.
func BenchmarkPutParallel(b *testing.B) {
	s := newStore(b, Config{})
	data, d := content(4 << 10)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Put(b.Context(), d, -1, bytes.NewReader(data)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkUpload(b *testing.B) {
	for _, chunks := range []int{1, 8} {
		b.Run(fmt.Sprintf("64MiB/%dchunks", chunks), func(b *testing.B) {
			s := newStore(b, Config{})
			data, d := content(64 << 20)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				id, err := s.Start(b.Context(), "bench", digest.SHA256)
				if err != nil {
					b.Fatal(err)
				}
				u := oci.Upload{Repo: "bench", ID: id}
				for i := range chunks {
					part := data[i*len(data)/chunks : (i+1)*len(data)/chunks]
					if _, err := s.Append(b.Context(), u, -1, bytes.NewReader(part)); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := s.Finish(b.Context(), u, -1, nil, d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkFill(b *testing.B) {
	for _, readers := range []int{1, 8} {
		b.Run(fmt.Sprintf("64MiB/%dfollowers", readers), func(b *testing.B) {
			s := newStore(b, Config{})
			data, d := content(64 << 20)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				var wg sync.WaitGroup
				for range readers {
					wg.Go(func() {
						r, _, err := s.Fill(b.Context(), d, bodyOf(data))
						if err != nil {
							b.Error(err)
							return
						}
						defer r.Close()
						if n, err := io.Copy(io.Discard, struct{ io.Reader }{r}); err != nil || n != int64(len(data)) {
							b.Error(n, err)
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				s.forget(b, d)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	s := newStore(b, Config{})
	data, d := content(4 << 10)
	if err := s.Put(b.Context(), d, -1, bytes.NewReader(data)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r, _, err := s.Open(b.Context(), d)
		if err != nil {
			b.Fatal(err)
		}
		_ = r.Close()
	}
}
