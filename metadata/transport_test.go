package metadata

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A call that failed is held only while this node leads the call's term: what
// ended before the call did, no watcher hears of.
func TestHold(t *testing.T) {
	for _, tc := range []struct {
		name string
		term uint64 // that this node leads; 0: none
		then func(tr *transport, beat chan struct{})
		want bool
	}{
		{"leads, and a heartbeat gets through", 7, func(_ *transport, beat chan struct{}) { close(beat) }, true},
		{"leads, and the other is removed", 7, func(tr *transport, beat chan struct{}) {
			tr.beats = map[raft.ServerID]chan struct{}{"peer": beat}
			tr.peer("peer", true)
		}, false},
		{"leads, until another does", 7, func(tr *transport, _ chan struct{}) { tr.leaders.told("other") }, false},
		{"lost it meanwhile", 0, nil, false},
		{"lost it meanwhile, and leads again", 8, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked, beat := make(chan struct{}), make(chan struct{})
			tr := &transport{removed: make(map[raft.ServerID]bool), self: "me", leaders: new(watchers), leads: func(term uint64) bool {
				close(asked)
				return term == tc.term
			}}
			held := make(chan bool, 1)
			go func() { held <- tr.hold("peer", 7, beat) }()
			select {
			case <-asked: // the watcher is there
			case <-time.After(patience):
				t.Fatal("it never looked who leads")
			}
			if tc.then != nil {
				tc.then(tr, beat)
			}
			select {
			case got := <-held:
				if got != tc.want {
					t.Errorf("got %v", got)
				}
			case <-time.After(patience):
				t.Error("held for good")
				close(beat)
			}
		})
	}
	t.Run("the other was removed before", func(t *testing.T) {
		tr := &transport{self: "me", leaders: new(watchers), leads: func(uint64) bool { return true }, removed: make(map[raft.ServerID]bool)}
		tr.peer("peer", true)
		if tr.hold("peer", 7, make(chan struct{})) {
			t.Error("a heartbeat got through to nobody")
		}
		tr.peer("peer", false)
		if tr.isRemoved("peer") {
			t.Error("it came back, and nothing is held for it")
		}
	})
}
