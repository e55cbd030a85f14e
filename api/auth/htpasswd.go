package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A htpasswd file is looked at again when it is needed and a second has passed.
const (
	fileInterval = time.Second
	maxFile      = 1 << 20
)

// htpasswd is a file of names and bcrypt hashes, as Apache's htpasswd -B writes
// it. The latest good version counts.
type htpasswd struct {
	path string
	log  *slog.Logger

	good atomic.Pointer[fileAccounts]

	looking sync.Mutex // held by whoever looks at the file
	looked  time.Time
	bytes   []byte // as seen last, good or not
}

type fileAccounts struct {
	byName  map[string]*account
	highest int // cost of the dearest hash
}

func openHtpasswd(path string, now time.Time, log *slog.Logger) (*htpasswd, error) {
	h := &htpasswd{path: path, log: log, looked: now}
	if err := h.look(); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *htpasswd) accounts(now time.Time) map[string]*account { return h.current(now).byName }

func (h *htpasswd) highestCost(now time.Time) int { return h.current(now).highest }

// current returns the accounts of the file, which one caller a second reads
// while the others take what is there.
func (h *htpasswd) current(now time.Time) *fileAccounts {
	if h.looking.TryLock() {
		defer h.looking.Unlock()
		if since := now.Sub(h.looked); since >= fileInterval || since < 0 {
			h.looked = now
			if err := h.look(); err != nil {
				h.log.Error("the htpasswd file is not fit; the last good one stays", "error", err)
			}
		}
	}
	return h.good.Load()
}

// look reads the file, and makes it count if it is another one and good. A bad
// one is an error once only.
func (h *htpasswd) look() error {
	b, err := readFile(h.path)
	if err != nil {
		b = []byte(err.Error()) // so that the same failure is not told again
	}
	if h.bytes != nil && bytes.Equal(b, h.bytes) {
		return nil
	}
	h.bytes = b
	if err != nil {
		return fmt.Errorf("htpasswd file: %w", err)
	}
	accounts, err := parseHtpasswd(b)
	if err != nil {
		return fmt.Errorf("htpasswd file %s: %w", h.path, err)
	}
	h.good.Store(accounts)
	return nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("larger than %d bytes", maxFile)
	}
	return b, err
}

// parseHtpasswd reads "name:hash" lines; empty lines and those that begin with
// "#" say nothing. Errors tell the line, never the hash.
func parseHtpasswd(b []byte) (*fileAccounts, error) {
	all := &fileAccounts{byName: map[string]*account{}}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("line %d: not a name, a colon and a hash", n)
		}
		if err := CheckAccountName(name); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if all.byName[name] != nil {
			return nil, fmt.Errorf("line %d: %s is there twice", n, name)
		}
		cost, err := hashCost(hash)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w; make it with htpasswd -B", n, err)
		}
		sum := sha256.Sum256([]byte(name + ":" + hash))
		all.byName[name] = &account{
			kind: File, hash: []byte(hash), cost: cost,
			generation: "f" + hex.EncodeToString(sum[:8]), // the same at every node with the same line
		}
		all.highest = max(all.highest, cost)
	}
	return all, nil
}
