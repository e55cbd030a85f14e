package metadata

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// pushes makes the entries of n images of eight blobs and a manifest of 1.5
// KB, which make a mesh that has been in use: digests are random.
func pushes(b *testing.B, n int) []*raft.Log {
	logs := make([]*raft.Log, n)
	body := bytes.Repeat([]byte("x"), 1500)
	for i := range logs {
		name := fmt.Sprint("image", i)
		m := imageOf(fmt.Sprint("library/repo", i%100), name, []string{fmt.Sprint("v", i)})
		m.Body, m.Size = body, int64(len(body))
		for j := range 8 {
			m.Blobs = append(m.Blobs, sha(fmt.Sprint(name, j)))
		}
		c := command(0, m)
		c.RequestId = fmt.Sprintf("%032d", i)
		c.Now += int64(i) * 1e7
		logs[i] = entry(b, uint64(i)+2, c)
	}
	return logs
}

// sparse is a state in which manifests need no links.
func sparse(t testing.TB) *replica {
	r := newReplica(t)
	r.must(command(0, founded(joined("1", "n", "k"), true)))
	return r
}

func BenchmarkApplyBatch(b *testing.B) {
	for _, batch := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			r := sparse(b)
			logs := pushes(b, b.N)
			b.ReportAllocs()
			b.ResetTimer()
			for len(logs) > 0 {
				n := min(batch, len(logs))
				r.ApplyBatch(logs[:n])
				logs = logs[n:]
			}
		})
	}
}

// BenchmarkLink is the command that each pushed blob costs.
func BenchmarkLink(b *testing.B) {
	r := sparse(b)
	logs := make([]*raft.Log, b.N)
	for i := range logs {
		logs[i] = entry(b, uint64(i)+2, command(0, &wire.Link{Repo: "library/repo", Digest: sha(fmt.Sprint(i)), Size: 1}))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for _, l := range logs {
		r.Apply(l)
	}
}

// BenchmarkRestore is what a follower does with a stream of 10,000 images, and
// what it costs to make one.
func BenchmarkRestore(b *testing.B) {
	r := sparse(b)
	for logs := pushes(b, 10_000); len(logs) > 0; logs = logs[min(64, len(logs)):] {
		r.ApplyBatch(logs[:min(64, len(logs))])
	}
	stream := r.stream()
	b.Run("make", func(b *testing.B) {
		b.SetBytes(int64(len(stream)))
		for range b.N {
			r.stream()
		}
	})
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(int64(len(stream)))
		b.ReportAllocs()
		for range b.N {
			if err := r.restore(stream); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("checkpoint", func(b *testing.B) {
		store := openStore(b, b.TempDir(), r)
		for i := range b.N {
			take(b, store, r, uint64(i+1))
		}
	})
}

// BenchmarkRead is what a pull by tag, and one by digest, asks of the state.
func BenchmarkRead(b *testing.B) {
	const images = 20_000
	r := sparse(b)
	logs := pushes(b, images)
	for len(logs) > 0 {
		n := min(64, len(logs))
		r.ApplyBatch(logs[:n])
		logs = logs[n:]
	}
	if err := r.db.Flush(); err != nil {
		b.Fatal(err)
	}
	lookup := func(b *testing.B, i int) {
		repo := fmt.Sprint("library/repo", i%100)
		if m, ok, err := r.tagged(repo, fmt.Sprint("v", i)); !ok || err != nil || len(m.Body) != 1500 {
			b.Fatal(ok, err)
		}
	}
	b.Run("tag/hot", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			lookup(b, 77)
		}
	})
	b.Run("tag/any", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			lookup(b, rand.IntN(images))
		}
	})
	d := digest.FromString("image77")
	b.Run("digest/hot", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, ok, err := r.manifest("library/repo77", d); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("digest/missing", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if _, ok, err := r.manifest("library/repo78", d); ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("repositories", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if items, more, err := r.repositories(Page{N: -1}, nil); len(items) != 100 || more || err != nil {
				b.Fatal(len(items), err)
			}
		}
	})
}

// BenchmarkHomes is what pins cost a pass for each blob, in a mesh of 20,000
// images: of a repository that no pin is about, of one of which all is pinned,
// and of one of which a tag is.
func BenchmarkHomes(b *testing.B) {
	const images, page = 20_000, 1000
	r := sparse(b)
	for logs := pushes(b, images); len(logs) > 0; logs = logs[min(64, len(logs)):] {
		r.ApplyBatch(logs[:min(64, len(logs))])
	}
	var ds []digest.Digest
	for i := range page {
		ds = append(ds, digest.FromString(fmt.Sprintf("image%d%d", i*images/page, i%8)))
	}
	for _, row := range []struct {
		name string
		look Look
	}{{"elsewhere", Elsewhere}, {"whole", Enough}, {"tags", Further}} {
		b.Run(row.name, func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; n < b.N; n += page {
				found := 0
				if err := r.homes(ds, func(int, string, string) Look { found++; return row.look }); err != nil || found < page {
					b.Fatal(found, err)
				}
			}
		})
	}
}
