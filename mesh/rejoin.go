package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Why a join failed; errors.Is tells them apart, the text is for people.
var (
	ErrNoSuchHost  = errors.New("the address does not resolve")
	ErrUnreachable = errors.New("the port cannot be reached over TCP")
	ErrSecret      = errors.New("the port answers but does not accept our secret; compare the secret files")
	ErrNotGossip   = errors.New("the port answers, but not as a gossip port of this release does; is it the right port?")
	ErrOtherMesh   = errors.New("it belongs to another mesh that has the same secret")
	ErrOnlySelf    = errors.New("these are all this node's own addresses")
)

// Join tries each address once, every record of it, and returns how many
// members answered. The error, nil if any did, says for each address what is
// wrong.
func (m *Members) Join(ctx context.Context, addrs []string) (int, error) {
	var targets []netip.AddrPort
	var failures []error
	for _, addr := range addrs {
		found, err := resolve(ctx, addr)
		if err != nil {
			failures = append(failures, fmt.Errorf("join %s: %w: %w", addr, ErrNoSuchHost, err))
		}
		targets = append(targets, found...)
	}
	targets = slices.DeleteFunc(targets, func(a netip.AddrPort) bool { return a.String() == m.self })
	slices.SortFunc(targets, netip.AddrPort.Compare)
	targets = slices.Compact(targets)
	if len(targets) == 0 && len(failures) == 0 {
		return 0, fmt.Errorf("join %s: %w", strings.Join(addrs, ", "), ErrOnlySelf)
	}
	results := make(chan error, len(targets)) // so that an attempt outlives ctx without waiting for a reader
	for _, a := range targets {
		if !m.spawn(func() { results <- m.join(a.String()) }) {
			return 0, errClosed
		}
	}
	joined := 0
	for range targets {
		select {
		case err := <-results:
			if err == nil {
				joined++
			} else {
				failures = append(failures, err)
			}
		case <-ctx.Done():
			return joined, fmt.Errorf("join %s: %w", strings.Join(addrs, ", "), ctx.Err())
		}
	}
	if joined > 0 {
		return joined, nil
	}
	return 0, errors.Join(failures...)
}

// spawn runs f in a goroutine that Close waits for, unless it was called.
func (m *Members) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.tasks.Go(f)
	}
	return !m.closed
}

// join exchanges state with one address.
func (m *Members) join(addr string) error {
	_, err := m.list.Join([]string{addr})
	if err == nil {
		return nil
	}
	return fmt.Errorf("join %s: %w", addr, m.explain(addr, err))
}

// explain tells the causes apart that memberlist gives as text only. A test
// holds each phrase against the library as it is.
func (m *Members) explain(addr string, err error) error {
	if dial := m.net.dialError(addr); dial != nil {
		var timeout net.Error
		switch {
		case errors.Is(dial, syscall.ECONNREFUSED):
			return fmt.Errorf("%w: connection refused, nothing listens there", ErrUnreachable)
		case errors.As(dial, &timeout) && timeout.Timeout():
			return fmt.Errorf("%w: no answer in %s, the host is down or a firewall drops it", ErrUnreachable, m.timing.Stream)
		}
		return fmt.Errorf("%w: %w", ErrUnreachable, dial)
	}
	text := err.Error()
	for _, row := range []struct {
		phrase string
		cause  error
	}{
		{"no installed keys could decrypt the message", ErrSecret},
		{ErrOtherMesh.Error(), ErrOtherMesh},
		{ErrOnlySelf.Error(), ErrOnlySelf},
		{"remote state is not encrypted", ErrNotGossip},
		{"EOF", ErrNotGossip}, // a stream with another label is closed without a word
		{"connection reset", ErrNotGossip},
		{"i/o timeout", ErrNotGossip},
	} {
		if strings.Contains(text, row.phrase) {
			return row.cause
		}
	}
	return errors.New(strings.Join(strings.Fields(text), " ")) // on one line
}

// rejoin looks for lost members until ctx ends: memberlist forgets whoever has
// been down for a while, so the two halves of a mesh that was cut would never
// meet again by themselves.
func (m *Members) rejoin(ctx context.Context) {
	tick := time.NewTicker(m.timing.Rejoin)
	defer tick.Stop()
	for {
		if lost := m.lost(); len(lost) > 0 {
			n, err := m.Join(ctx, lost)
			switch {
			case n > 0:
				m.log.Debug("found lost members again", "answered", n)
			case (errors.Is(err, ErrSecret) || errors.Is(err, ErrOtherMesh)) && m.rare.first("rejoin"):
				m.log.Warn("cannot rejoin the members known from before", "error", err)
			case ctx.Err() == nil:
				m.log.Debug("lost members do not answer", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-m.kick:
		}
	}
}

// lost returns the addresses to try: those of members out of sight and, if
// there are any or nobody is in sight, the seeds.
func (m *Members) lost() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var addrs []string
	alone, member := true, m.enrolled(m.id)
	for id, e := range m.entries {
		foreign := e.Cluster != "" && m.meta.Cluster != "" && e.Cluster != m.meta.Cluster
		switch {
		case m.present(e):
			alone = false
		case !foreign && e.Gossip != "" && (!member || m.enrolled(id)):
			addrs = append(addrs, e.Gossip)
		}
	}
	missing := slices.ContainsFunc(m.roster, func(r RosterMember) bool {
		e, ok := m.entries[r.ID]
		return r.ID != m.id && (!ok || !m.present(e))
	})
	if alone || missing {
		addrs = append(addrs, m.seeds...)
	}
	return addrs
}

// hurry wants mu held.
func (m *Members) hurry() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// tend keeps the file up to date until ctx ends, and ends the time in which
// members not met yet are given the benefit of the doubt.
func (m *Members) tend(ctx context.Context) {
	settle := time.NewTimer(m.timing.Settle)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-settle.C:
			m.mu.Lock()
			m.settled = true
			m.touch()
			m.mu.Unlock()
		case <-m.dirty:
			if err := m.write(); err != nil {
				m.log.Warn("cannot keep the file of known members", "error", err)
			}
		}
	}
}

// load reads the file of members. It is a hint: one that cannot be parsed is
// as good as none, but one that cannot be read is the operator's to mend.
func (m *Members) load() error {
	b, err := os.ReadFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read known members: %w", err)
	}
	var all []Peer
	if err := json.Unmarshal(b, &all); err != nil {
		m.log.Warn("ignoring the file of known members", "path", m.path, "error", err)
	}
	for _, p := range all {
		if p.ID != m.id {
			m.entries[p.ID] = &entry{Peer: p}
		}
	}
	return nil
}

// write replaces the file of members, if it would differ. A power cut leaves the
// old file or the new one.
func (m *Members) write() error {
	m.mu.Lock()
	all := make([]Peer, 0, len(m.entries))
	for _, e := range m.entries {
		all = append(all, e.Peer)
	}
	m.mu.Unlock()
	slices.SortFunc(all, func(a, b Peer) int { return strings.Compare(a.ID, b.ID) })
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(m.path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(m.path), filepath.Base(m.path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), m.path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write known members: %w", err)
	}
	// The new name is durable once its folder is. Not every system can sync
	// one, and an old list of members is a good hint too.
	if dir, err := os.Open(filepath.Dir(m.path)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
	return nil
}
