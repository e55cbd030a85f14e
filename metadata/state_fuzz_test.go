package metadata

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// aged is populated with all that later levels bring.
func aged(t testing.TB) *replica {
	r := populated(t)
	levelUp := joined("1", "n", "k")
	levelUp.Level = FeatureLevel
	r.must(
		command(0, levelUp), command(0, &wire.Policy{UntaggedAfter: 1}),
		command(0, pushed("c", "gone")), command(0, lost("gone", 1)), command(0, placed(imageOf("c", "large", nil))),
		command(0, changes(setTo("user/a", "x"), setTo("user/b", ""))),
	)
	return r
}

// FuzzApply: no entry makes Apply panic, and none that was not understood or
// was refused leaves anything behind.
func FuzzApply(f *testing.F) {
	once := command(1, imageOf("a/b", "m", []string{"v1"}, "blob"))
	once.RequestId = "again"
	for _, c := range []*wire.Command{
		once, command(0, mounted("b", "blob", "")), command(0, unlinked("a/b", "blob")), command(0, untagged("a/b", "v1")),
		command(0, dropped("a/b", "s")), command(0, joined("1", "n", "k")), command(0, founded(joined("3", "o", "k"), true)),
		command(0, referring(imageOf("c", "x", nil), "m", "t")), command(0, out("1", true)), command(0, drained("1", true)),
		command(0, &wire.Recover{Epoch: 4, Keep: []string{"1"}}),
		command(0, &wire.Expire{
			LinksBefore: minute(1), Links: namesOf("c", "gone"), UntaggedBefore: minute(1), Manifests: namesOf("c", "large"),
		}),
		command(0, lost("large", 1)), command(0, &wire.Lost{Digest: sha("gone"), Found: true}), command(0, &wire.Policy{UntaggedAfter: 7}),
		command(0, changes(ifAt(11, setTo("user/a", "y")), ifAt(0, setTo("user/c", "z")), unset("user/b"))),
		command(0, fixed(imageOf("a/b", "s", []string{"v1"}), "v1")),
	} {
		f.Add(encoded(f, c))
	}
	r := aged(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		b := r.db.NewIndexedBatch()
		defer b.Close()
		queue := receiptQueue{requests: append([]request(nil), r.receipts.requests...)}
		x := &tx{b: b, at: r.at, receipts: &queue, cluster: r.cluster(), level: r.level(), settings: r.settingSums}
		l := &raft.Log{Index: r.last + 1, Type: raft.LogCommand, Data: data}
		cmd, err := x.next(l)
		if err != nil {
			if cmd != nil || !errors.Is(err, errUnknownOp) || b.Count() > 0 {
				t.Fatal(cmd, err, b.Count())
			}
			return
		}
		d, err := x.apply(l, cmd)
		if err != nil {
			t.Fatal(err)
		}
		// Old receipts may go, and one may come.
		if d.verdict != done && int(b.Count()) > r.receipts.len()-queue.len()+2 {
			t.Fatalf("refused with %d, and yet %d keys were written", d.verdict, b.Count())
		}
		if (d.result().err == nil) != (d.verdict == done) {
			t.Fatal(d)
		}
		if sums, err := loadSettingSums(b); err != nil || sums != x.settings {
			t.Fatalf("settings of %+v, counted as %+v: %v", sums, x.settings, err)
		}
	})
}

// FuzzStream: a decoder ends with an error or has read a stream that is sound,
// which is then the only one of these records.
func FuzzStream(f *testing.F) {
	good := aged(f).stream()
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(forge(header{"mesh", 4, 9, 2}, "\x01", "", "\x02", "", "\x03x", "y"))
	f.Add(append(preamble(header{}), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := newDecoder(bytes.NewReader(b))
		if err != nil {
			return
		}
		var records []string
		last := ""
		for {
			k, v, err := d.next()
			if err != nil {
				if err == io.EOF && !bytes.Equal(forge(d.header, records...), b) {
					t.Fatal("the same records make another stream")
				}
				return
			}
			if string(k) <= last || len(k) > maxKey {
				t.Fatalf("key %x after %x", k, last)
			}
			last = string(k)
			records = append(records, last, string(v))
		}
	})
}

// FuzzRecord: records of a state that another node sent are read without a
// panic, and one that is whole is written again as what it says.
func FuzzRecord(f *testing.F) {
	r := aged(f)
	err := scan(r.db, nil, func(_, v []byte) (bool, error) {
		f.Add(bytes.Clone(v))
		return true, nil
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, decodeProgress, progress.encode)
		again(t, b, decodeLink, link.encode)
		again(t, b, decodeSetting, settingRecord.encode)
		again(t, b, decodeReceipt, receipt.encode)
		again(t, b, decodeReferrer, referrer.encode)
		again(t, b, decodeCluster, encodeCluster)
		again(t, b, func(b []byte) (memberRecord, error) { return decodeMember("", b) }, memberRecord.encode)
		again(t, b, decodeManifest, manifestRecord.encode)
		again(t, b, decodeNaming, naming.encode)
		again(t, b, decodeHeader, header.encode)
		if d := sumDigest(b); d != "" && string(mustSum(t, string(d))) != string(b) {
			t.Fatal(d)
		}
	})
}

// again checks that what a record says survives being written and read.
func again[T any](t *testing.T, b []byte, decode func([]byte) (T, error), encode func(T) []byte) {
	v, err := decode(b)
	if err != nil {
		return
	}
	first := encode(v)
	w, err := decode(first)
	if err != nil || !bytes.Equal(encode(w), first) {
		t.Fatalf("%T: %+v became %+v, %v", v, v, w, err)
	}
}

// TestWireOrder: what is stored does not depend on how a proposer's protobuf
// orders the annotations of a manifest.
func TestWireOrder(t *testing.T) {
	want, r := "", newReplica(t)
	for i := range 20 {
		r.wipe()
		b, err := proto.MarshalOptions{Deterministic: i%2 == 0}.Marshal(command(0, referring(imageOf("c", "x", nil), "m", "t")))
		if err != nil {
			t.Fatal(err)
		}
		r.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: b})
		if got := r.sum(); want != "" && got != want {
			t.Fatal("another state")
		} else {
			want = got
		}
	}
}
