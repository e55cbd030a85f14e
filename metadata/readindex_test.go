package metadata

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whoever comes while a round runs shares the next one, never that one.
func TestRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own := newTasks()
		var n int
		begin, end := make(chan int), make(chan struct{})
		r := &rounds[int]{own: own, time: time.Hour, run: func(context.Context) (int, error) {
			n++
			begin <- n
			<-end
			return n, nil
		}}
		var mu sync.Mutex
		got := make(map[int]int)
		var callers sync.WaitGroup
		join := func() {
			callers.Go(func() {
				v, err := r.join(t.Context())
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				got[v]++
			})
			synctest.Wait()
		}
		join()
		<-begin // round 1 has begun
		join()
		join()
		join()
		end <- struct{}{}
		<-begin
		join()
		end <- struct{}{}
		<-begin
		end <- struct{}{}
		callers.Wait()
		if got[1] != 1 || got[2] != 3 || got[3] != 1 || n != 3 {
			t.Errorf("%v callers by round", got)
		}

		join2, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		left := make(chan error, 1)
		go func() { _, err := r.join(join2); left <- err }()
		<-begin
		if err := <-left; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller that gave up: %v", err)
		}
		end <- struct{}{}
		own.close()
		if _, err := r.join(t.Context()); !errors.Is(err, errClosed) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// One round serves every read that waits for it.
func TestRoundsAreShared(t *testing.T) {
	m := grow(t, 3, 3)
	n := m.follower()
	must(t, n.push("r", "x", 1))
	before := n.Status().ReadRounds
	const readers, each = 32, 20
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for range each {
				if err := n.pull("r", "x", 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if rounds := n.Status().ReadRounds - before; rounds >= readers*each/2 {
		t.Errorf("%d rounds for %d reads", rounds, readers*each)
	}
}

// What a leader counts: voters that say its term after it asked.
func TestAskVoters(t *testing.T) {
	m := grow(t, 3, 3)
	leader := m.leader()
	ctx := context.Background()
	voters, _ := leader.servers()
	term := leader.raft.CurrentTerm()
	for _, tc := range []struct {
		name   string
		term   uint64
		voters []string
		ok     bool
	}{
		{"all of three", term, voters, true},
		{"an earlier term", term - 1, voters, false},
		{"a term that nobody knows yet", term + 1, voters, false},
		{"alone", term, []string{leader.id}, true},
		{"not a voter itself", term, []string{"x", "y", "z"}, false},
		{"itself and one of three", term, []string{leader.id, m.follower().id, "x"}, true},
		{"itself alone of three", term, []string{leader.id, "x", "y"}, false},
		{"itself and one of five", term, []string{leader.id, m.follower().id, "x", "y", "z"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := leader.askVoters(ctx, tc.term, tc.voters); (err == nil) != tc.ok {
				t.Errorf("%v", err)
			}
		})
	}
}
