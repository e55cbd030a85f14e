package metadata

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"
)

// forge makes a stream of records, key after value, that is sound in all but
// what it says.
func forge(h header, records ...string) []byte {
	b := preamble(h)
	for _, s := range records {
		b = appendString(b, s)
	}
	b = binary.BigEndian.AppendUint64(append(b, 0), uint64(len(records)/2))
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// recount makes a forged stream count n records.
func recount(b []byte, n uint64) []byte {
	b = binary.BigEndian.AppendUint64(b[:len(b)-streamTail], n)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func TestStream(t *testing.T) {
	r := populated(t)
	b := r.stream()
	if size, err := streamSize(r.db); err != nil || size != int64(len(b)) {
		t.Errorf("size %d %v, want %d", size, err, len(b))
	}
	d, err := newDecoder(bytes.NewReader(b))
	if err != nil || d.header != (header{"mesh", 3, 5, 1}) {
		t.Fatalf("header %+v %v", d, err)
	}
	other := newReplica(t)
	told := 0
	other.onMembers(func() { told = len(other.members()) })
	if err := other.restore(b); err != nil {
		t.Fatal(err)
	}
	if other.sum() != r.sum() || other.applied() != 5 || told != 1 || other.receipts.len() != 1 {
		t.Errorf("restored: %d applied, %d members, %d receipts", other.applied(), told, other.receipts.len())
	}
	if !bytes.Equal(other.stream(), b) {
		t.Error("the restored state has another stream")
	}
	other.restart()
	if other.sum() != r.sum() {
		t.Error("the restored state did not outlive a restart")
	}
	empty := newReplica(t)
	if err := empty.restore(newReplica(t).stream()); err != nil || empty.applied() != 0 {
		t.Errorf("nothing restored: %v", err)
	}
}

// TestDamagedStream: no cut and no flipped bit goes unnoticed.
func TestDamagedStream(t *testing.T) {
	b := populated(t).stream()
	whole := func(b []byte) error {
		d, err := newDecoder(bytes.NewReader(b))
		if err != nil {
			return err
		}
		return d.drain()
	}
	if err := whole(b); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if err := whole(b[:i]); !errors.Is(err, errStream) {
			t.Fatalf("cut at %d: %v", i, err)
		}
		b[i] ^= 1 << (i % 8)
		if err := whole(b); !errors.Is(err, errStream) {
			t.Fatalf("flipped at %d: %v", i, err)
		}
		b[i] ^= 1 << (i % 8)
	}
}

// TestRefusedStream: what is not this mesh's state, or not a state, changes
// nothing.
func TestRefusedStream(t *testing.T) {
	r := populated(t)
	good, want := r.stream(), r.sum()
	at := header{"mesh", 3, 9, 2}
	cluster := string(encodeCluster(Cluster{ID: "mesh", Epoch: 3, Replicas: 3}))
	progressed := string(progress{9, 2, epoch}.encode())
	long := string(bytes.Repeat([]byte{keyMember}, maxKey+1))
	for _, row := range []struct {
		name   string
		stream []byte
		want   error
	}{
		{"nothing", nil, errStream},
		{"cut short", good[:len(good)-1], errStream},
		{"more than a stream", append(bytes.Clone(good), 0), errStream},
		{"another format", append([]byte("flotilla\x02"), good[9:]...), errStream},
		{"another mesh", forge(header{cluster: "other", epoch: 9, index: 9, term: 2}), errForeign},
		{"no mesh", forge(header{index: 9, term: 2}), errForeign},
		{"before recovery", forge(header{"mesh", 2, 9, 2}), errForeign},
		{"after a recovery that this one took no part in", forge(header{"mesh", 1<<32 | 7, 9, 2}), errForeign},
		{"another header", forge(header{"mesh", 3, 8, 2}, "\x01", progressed, "\x02", cluster), errStream},
		{"no records", forge(at), errStream},
		{"out of order", forge(at, "\x02", cluster, "\x01", progressed), errStream},
		{"twice", forge(at, "\x01", progressed, "\x01", progressed, "\x02", cluster), errStream},
		{"fewer than counted", recount(forge(at, "\x01", progressed, "\x02", cluster), 3), errStream},
		{"unknown kind", forge(at, "\x01", progressed, "\x02", cluster, "\x06x", ""), errStream},
		{"long key", forge(at, "\x01", progressed, "\x02", cluster, long, ""), errStream},
		{"damaged progress", forge(at, "\x01", "\xff", "\x02", cluster), errRecord},
		{"damaged member", forge(at, "\x01", progressed, "\x02", cluster, "\x03x", "\x00\x09"), errRecord},
		{"damaged receipt", forge(at, "\x01", progressed, "\x02", cluster, "\x04x", "\x00"), errRecord},
		{"endless length", append(preamble(at), bytes.Repeat([]byte{0xff}, 64)...), errStream},
		{"long value", append(preamble(at), append([]byte("\x01\x01"), binary.AppendUvarint(nil, maxValue+1)...)...), errStream},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := r.restore(row.stream); !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if r.sum() != want || len(r.fatal) > 0 {
				t.Errorf("the state has changed, or ended: %v", r.fatal)
			}
			if left, _ := filepath.Glob(filepath.Join(r.dir, "db-*")); len(left) != 1 {
				t.Errorf("left over: %v", left)
			}
		})
	}
}
