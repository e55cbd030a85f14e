package auth

import (
	"container/list"
	"sync"
)

// lru is a map that holds at most max entries and forgets those that were not
// used for longest.
type lru[K comparable, V any] struct {
	max int

	mu      sync.Mutex
	entries map[K]*list.Element // of pair[K, V]
	order   *list.List          // the latest used first
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](max int) *lru[K, V] {
	return &lru[K, V]{max: max, entries: map[K]*list.Element{}, order: list.New()}
}

func (l *lru[K, V]) get(key K) (value V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.find(key)
}

func (l *lru[K, V]) find(key K) (value V, ok bool) {
	e, ok := l.entries[key]
	if !ok {
		return value, false
	}
	l.order.MoveToFront(e)
	return e.Value.(pair[K, V]).value, true
}

// add puts value under key unless there is one, and returns what is there.
func (l *lru[K, V]) add(key K, value V) V {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.find(key); ok {
		return old
	}
	l.entries[key] = l.order.PushFront(pair[K, V]{key, value})
	if l.order.Len() > l.max {
		last := l.order.Back()
		l.order.Remove(last)
		delete(l.entries, last.Value.(pair[K, V]).key)
	}
	return value
}
