package metadata

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// Between zones a heartbeat that is due shortly after another was answered is
// not sent; whatever is in doubt is.
func TestHeartbeatsOverLines(t *testing.T) {
	const election = 1500 * time.Millisecond
	members := []Member{{ID: "me", Zone: "ship"}, {ID: "mate", Zone: "ship"}, {ID: "far", Zone: "shore"}}
	for _, tc := range []struct {
		name string
		do   func(s *heartbeats)
		to   raft.ServerID
		want bool
	}{
		{"never sent", func(*heartbeats) {}, "far", false},
		{"just answered", func(s *heartbeats) { s.sent("far", 3, nil) }, "far", true},
		{"answered in the last term", func(s *heartbeats) { s.sent("far", 2, nil) }, "far", false},
		{"failed since", func(s *heartbeats) { s.sent("far", 3, nil); s.sent("far", 3, errors.New("lost")) }, "far", false},
		{"answered long ago", func(s *heartbeats) { s.sent("far", 3, nil); time.Sleep(election * 2 / 5) }, "far", false},
		{"in this zone", func(s *heartbeats) { s.sent("mate", 3, nil) }, "mate", false},
		{"moved to this zone", func(s *heartbeats) {
			s.sent("far", 3, nil)
			s.place("me", []Member{{ID: "me", Zone: "shore"}, {ID: "far", Zone: "shore"}})
		}, "far", false},
		{"not a member any more", func(s *heartbeats) { s.sent("far", 3, nil); s.place("me", members[:2]) }, "far", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newHeartbeats(election)
				s.place("me", members)
				tc.do(s)
				if got := s.spares(tc.to, 3); got != tc.want {
					t.Errorf("spared: %v, want %v", got, tc.want)
				}
			})
		})
	}
}
