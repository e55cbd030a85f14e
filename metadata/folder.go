package metadata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The state's folder holds one database, db-000001 or later, and a file that
// names it. Restore builds the next database beside it and then replaces the
// file, so that a crash at any moment leaves the old one or the new one.
const (
	currentFile = "CURRENT"
	dbPrefix    = "db-"
)

// current returns the name of the database's folder, "" where there is none.
func (s *state) current() (string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, currentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	name, ok := strings.CutSuffix(string(b), "\n")
	if _, err := dbNumber(name); !ok || err != nil {
		return "", fmt.Errorf("%s is damaged", filepath.Join(s.dir, currentFile))
	}
	return name, nil
}

func dbName(n uint64) string { return fmt.Sprintf("%s%06d", dbPrefix, n) }

func dbNumber(name string) (n uint64, err error) {
	_, err = fmt.Sscanf(name, dbPrefix+"%d", &n)
	if err == nil && dbName(n) != name {
		err = fs.ErrInvalid
	}
	return n, err
}

// setCurrent durably makes name the database of this state.
func (s *state) setCurrent(name string) error {
	return writeFile(s.dir, currentFile, []byte(name+"\n"))
}

// sweep deletes databases that are not the current one, as a crash leaves them.
func (s *state) sweep() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		s.log.Warn("cannot look for leftovers of the catalogue", "error", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), dbPrefix) && e.Name() != s.name {
			s.discard(e.Name())
		}
	}
}

// discard deletes a database that nothing uses.
func (s *state) discard(name string) {
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		s.log.Warn("cannot delete an old state of the catalogue", "error", err)
	}
}

// writeFile replaces dir/name by content, wholly or not at all, durably.
func writeFile(dir, name string, content []byte) error {
	tmp := filepath.Join(dir, name+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes what was created, renamed or deleted in dir durable; pebble
// knows the systems on which that is nothing to do.
func syncDir(dir string) error {
	d, err := vfs.Default.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// pebbleLog takes what pebble says.
type pebbleLog struct {
	log   *slog.Logger
	fatal func(error)
	again *repeats
}

func (l pebbleLog) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug(fmt.Sprintf(format, args...), "from", "pebble")
	}
}

// Errorf tells of an error once in a while: on a full disk pebble tries its
// flush again a thousand times a second.
func (l pebbleLog) Errorf(format string, args ...any) {
	if !l.again.due(format) {
		return
	}
	l.log.Error(fmt.Sprintf(format, args...), "from", "pebble")
}

// Fatalf is called where pebble cannot tell what is on disk, after a failed
// sync of its WAL for one. It must not return, and the process is about to end.
func (l pebbleLog) Fatalf(format string, args ...any) {
	l.fatal(fmt.Errorf("pebble: "+format, args...))
	select {}
}

// get calls fn with the value under key, which is fn's only until it returns,
// and reports whether there was one.
func get(r pebble.Reader, key []byte, fn func(value []byte) error) (bool, error) {
	v, done, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if fn != nil {
		err = fn(v)
	}
	return true, errors.Join(err, done.Close())
}

// scan calls fn, in order, with the rest of each key that starts with prefix,
// and its value, until fn returns false. Both are fn's only until it returns.
func scan(r pebble.Reader, prefix []byte, fn func(rest, value []byte) (bool, error)) error {
	it, err := newIter(r, prefix)
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		more := false
		if err == nil {
			more, err = fn(it.Key()[len(prefix):], v)
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
		if !more {
			break
		}
	}
	return it.Close() // yields the iterator's own error too
}

// newIter returns an iterator over the keys that start with prefix.
func newIter(r pebble.Reader, prefix []byte) (*pebble.Iterator, error) {
	o := new(pebble.IterOptions)
	if len(prefix) > 0 {
		o.LowerBound, o.UpperBound = prefix, after(prefix)
	}
	return r.NewIter(o)
}

// hasPrefix reports whether a key starts with prefix.
func hasPrefix(r pebble.Reader, prefix []byte) (bool, error) {
	found := false
	err := scan(r, prefix, func(_, _ []byte) (bool, error) {
		found = true
		return false, nil
	})
	return found, err
}
