package metadata

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// A stream is the whole state as one node sends it to another, and as a backup
// holds it: our own records in the order of their keys, never files of the
// database, so that neither end need run the same version of that.
//
//	magic    "flotilla", 0x01            the last byte is the format's version
//	header   length, then                cluster id, cluster epoch, index, term of the last command
//	records  length, key, length, value  keys in strictly rising order
//	end      0x00                        no key is empty
//	count    8 bytes, big-endian         of the records
//	sum      32 bytes                    SHA-256 of all that comes before it
//
// Lengths and numbers are varints, texts have their length before them.
const (
	streamMagic = "flotilla\x01"

	maxHeader = 1 << 10
	maxValue  = 2*maxEntry + 4<<10 // a record may keep the body of an earlier entry

	streamTail = 8 + sha256.Size
)

var errStream = errors.New("damaged snapshot")

// header says whose state a stream holds, and how far it has come.
type header struct {
	cluster     string // "" before the mesh is founded
	epoch       Epoch
	index, term uint64
}

func (h header) encode() []byte {
	b := appendString(nil, h.cluster)
	b = binary.AppendUvarint(b, uint64(h.epoch))
	b = binary.AppendUvarint(b, h.index)
	return binary.AppendUvarint(b, h.term)
}

func decodeHeader(b []byte) (header, error) {
	f := fields{b: b}
	h := header{cluster: f.string(), epoch: Epoch(f.uint()), index: f.uint(), term: f.uint()}
	return h, f.err()
}

// readHeader returns what the header of r's stream must be.
func readHeader(r pebble.Reader) (h header, err error) {
	_, err = get(r, []byte{keyProgress}, func(v []byte) error {
		p, err := decodeProgress(v)
		h.index, h.term = p.index, p.term
		return err
	})
	if err != nil {
		return h, err
	}
	_, err = get(r, []byte{keyCluster}, func(v []byte) error {
		c, err := decodeCluster(v)
		h.cluster, h.epoch = c.ID, c.Epoch
		return err
	})
	return h, err
}

func preamble(h header) []byte {
	return appendString([]byte(streamMagic), h.encode())
}

// framer lays out a stream: records are put in, in the order of their keys, and
// what is in out is read.
type framer struct {
	out   bytes.Buffer
	sum   hash.Hash
	count uint64
}

// begin comes before the first record.
func (f *framer) begin(h header) {
	f.sum = sha256.New()
	f.put(preamble(h))
}

func (f *framer) put(b []byte) {
	f.sum.Write(b)
	f.out.Write(b)
}

func (f *framer) record(k, v []byte) {
	var n [binary.MaxVarintLen64]byte
	f.put(binary.AppendUvarint(n[:0], uint64(len(k))))
	f.put(k)
	f.put(binary.AppendUvarint(n[:0], uint64(len(v))))
	f.put(v)
	f.count++
}

// finish comes after the last record.
func (f *framer) finish() {
	f.put(binary.BigEndian.AppendUint64([]byte{0}, f.count))
	f.out.Write(f.sum.Sum(nil))
}

// full reports whether enough is laid out to be read meanwhile.
func (f *framer) full() bool { return f.out.Len() >= 64<<10 }

// encoder makes the stream of a database that does not change meanwhile, as it
// is read.
type encoder struct {
	framer
	it *pebble.Iterator // nil when all records are read
}

func newEncoder(r pebble.Reader) (*encoder, error) {
	h, err := readHeader(r)
	if err != nil {
		return nil, err
	}
	it, err := newIter(r, nil)
	if err != nil {
		return nil, err
	}
	e := &encoder{it: it}
	e.begin(h)
	it.First()
	return e, nil
}

// Read implements io.Reader.
func (e *encoder) Read(p []byte) (int, error) {
	for e.out.Len() == 0 {
		if e.it == nil {
			return 0, io.EOF
		}
		if err := e.fill(); err != nil {
			return 0, fmt.Errorf("stream state: %w", err)
		}
	}
	return e.out.Read(p)
}

// fill lays out the next records, or the end.
func (e *encoder) fill() error {
	for ; e.it.Valid() && !e.full(); e.it.Next() {
		v, err := e.it.ValueAndErr()
		if err != nil {
			return err
		}
		e.record(e.it.Key(), v)
	}
	if e.it.Valid() {
		return nil
	}
	if err := e.Close(); err != nil {
		return err
	}
	e.finish()
	return nil
}

// Close ends the reading; the database may then be closed.
func (e *encoder) Close() error {
	if e.it == nil {
		return nil
	}
	it := e.it
	e.it = nil
	return it.Close()
}

// streamSize returns the length of the stream that an encoder makes of r.
func streamSize(r pebble.Reader) (int64, error) {
	h, err := readHeader(r)
	if err != nil {
		return 0, err
	}
	size := int64(len(preamble(h)) + 1 + streamTail)
	err = scan(r, nil, func(k, v []byte) (bool, error) {
		size += int64(stringLen(len(k)) + stringLen(len(v)))
		return true, nil
	})
	return size, err
}

// stringLen is the length of a text of n bytes with its length before it.
func stringLen(n int) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], uint64(n)) + n
}

// decoder takes a stream apart that comes from anywhere. Until next has
// returned its end, nothing of it is proved.
type decoder struct {
	header
	r     *bufio.Reader
	sum   hash.Hash
	count uint64
	key   []byte // of the last record
	ahead []byte // of the one being read
	one   [1]byte
	value bytes.Buffer
}

func newDecoder(r io.Reader) (*decoder, error) {
	d := &decoder{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	magic := make([]byte, len(streamMagic))
	if err := d.full(magic); err != nil {
		return nil, err
	}
	if string(magic) != streamMagic {
		return nil, fmt.Errorf("%w: no snapshot of this format", errStream)
	}
	if err := d.text(maxHeader); err != nil {
		return nil, err
	}
	var err error
	d.header, err = decodeHeader(d.value.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%w: header", errStream)
	}
	return d, nil
}

// full reads len(b) bytes.
func (d *decoder) full(b []byte) error {
	if _, err := io.ReadFull(d.r, b); err != nil {
		return cutShort(err)
	}
	d.sum.Write(b)
	return nil
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends early", errStream)
	}
	return err
}

// length reads a length of at most most.
func (d *decoder) length(most uint64) (uint64, error) {
	var n uint64
	for shift := 0; shift < 63; shift += 7 {
		c, err := d.r.ReadByte()
		if err != nil {
			return 0, cutShort(err)
		}
		d.one[0] = c
		d.sum.Write(d.one[:])
		n |= uint64(c&0x7f) << shift
		if n > most {
			break
		}
		if c < 0x80 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: a length beyond bounds", errStream)
}

// text reads a length and as many bytes into value. Memory grows with what
// arrives, not with what is announced.
func (d *decoder) text(most uint64) error {
	n, err := d.length(most)
	if err != nil {
		return err
	}
	d.value.Reset()
	if _, err := io.CopyN(&d.value, d.r, int64(n)); err != nil {
		return cutShort(err)
	}
	d.sum.Write(d.value.Bytes())
	return nil
}

// next returns the next record, whose bytes are good until the next call, or
// io.EOF where the stream ends as it should and is proved whole.
func (d *decoder) next() (key, value []byte, err error) {
	n, err := d.length(maxKey)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, d.end()
	}
	d.ahead = slices.Grow(d.ahead[:0], int(n))[:n]
	key = d.ahead
	if err := d.full(key); err != nil {
		return nil, nil, err
	}
	if bytes.Compare(key, d.key) <= 0 {
		return nil, nil, fmt.Errorf("%w: records out of order", errStream)
	}
	if !knownKey(key) {
		return nil, nil, fmt.Errorf("%w: a record of kind %#x", errStream, key[0])
	}
	d.key, d.ahead = key, d.key
	if err := d.text(maxValue); err != nil {
		return nil, nil, err
	}
	d.count++
	return key, d.value.Bytes(), nil
}

func knownKey(k []byte) bool {
	switch k[0] {
	case keyProgress, keyCluster:
		return len(k) == 1
	case keyMember, keyReceipt, keySetting, keyRepo, keyBytes:
		return len(k) > 1
	}
	return false
}

// end reads what comes after the last record.
func (d *decoder) end() error {
	var count [8]byte
	if err := d.full(count[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(count[:]) != d.count {
		return fmt.Errorf("%w: records are missing", errStream)
	}
	want := d.sum.Sum(nil)
	got := make([]byte, sha256.Size)
	if err := d.full(got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: its checksum differs", errStream)
	}
	switch _, err := d.r.ReadByte(); err {
	case io.EOF:
		return io.EOF
	case nil:
		return fmt.Errorf("%w: it does not end", errStream)
	default:
		return err
	}
}

// drain reads a stream to its end and proves it whole.
func (d *decoder) drain() error {
	for {
		if _, _, err := d.next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
