package node

import (
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// modelName is a link or manifest that a client was told is there.
type modelName struct {
	repo     string
	digest   digest.Digest
	manifest bool
	given    time.Time // when the answer came
	pending  int       // requests under way that give it anew
}

func (n modelName) key() string { return fmt.Sprint(n.repo, " ", n.digest, " ", n.manifest) }

// naming notes that a request is under way that names d in repo. The returned
// function is told whether it was answered with success.
func (m *model) naming(repo string, d digest.Digest, manifest bool) (over func(given bool)) {
	n := modelName{repo: repo, digest: d, manifest: manifest}
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.named[n.key()]
	if known == nil {
		known = &n
		m.named[n.key()] = known
		known.given = time.Now().Add(time.Hour) // not yet
	}
	known.pending++
	return func(given bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		known.pending--
		known.given = time.Now()
		if !given { // and may be given all the same, any time
			known.given = known.given.Add(time.Hour)
		}
	}
}

func (m *model) namesOf(d digest.Digest) (all []modelName) {
	for _, n := range m.named {
		if n.digest == d {
			all = append(all, *n)
		}
	}
	return all
}

// exempt reports whether nothing can be expected of d, as it is one that the
// model destroyed. The caller holds m.mu.
func (m *model) exempt(d digest.Digest) bool { return m.gone[d] }

// modelUnlinks is the requests that take a blob out of a repository.
type modelUnlinks struct {
	pending int
	last    time.Time // when one was answered
}

func (m *model) unlinking(repo string, d digest.Digest) (over func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := repo + " " + d.String()
	if m.unlinked[key] == nil {
		m.unlinked[key] = &modelUnlinks{}
	}
	u := m.unlinked[key]
	u.pending++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		u.pending--
		u.last = time.Now()
	}
}

// unlinkedSince reports whether d was taken out of repo at that time or later.
func (m *model) unlinkedSince(repo string, d digest.Digest, since time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.unlinked[repo+" "+d.String()]
	return u != nil && (u.pending > 0 || u.last.After(since))
}

func (m *model) excused(d digest.Digest) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exempt(d)
}
