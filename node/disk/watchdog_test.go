package disk

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

// The disk hangs when one operation lasts ten ticks, and a small sync that is
// tried then ten more.
func TestWatchdog(t *testing.T) {
	const never = 1000
	for _, tt := range []struct {
		name        string
		each, times int // ticks that each of so many operations lasts, one after the other
		answer      int // ticks that each small sync lasts
		asked       int
		hung        bool
	}{
		{"idle", 0, 0, never, 0, false},
		{"nine ticks, again and again", hungTicks - 1, 5, never, 0, false},
		{"ten, of a busy disk", hungTicks, 1, 0, 1, false},
		{"many, of a busy disk", 5 * hungTicks, 1, 0, 5, false},
		{"many, of a very busy disk", 10 * hungTicks, 1, hungTicks - 1, 5, false},
		{"nineteen", 2*hungTicks - 1, 1, never, 1, false},
		{"twenty", 2 * hungTicks, 1, never, 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked, answered, left := 0, make(chan struct{}), 0
				w := &watchdog{small: func() {
					asked, left = asked+1, tt.answer
					<-answered
				}}
				ctx, cancel := context.WithCancel(t.Context())
				ticks, told := make(chan time.Time), []error{}
				w.running.Go(func() { w.watch(ctx, ticks, func(err error) { told = append(told, err) }) })
				for range tt.times {
					over := w.begin("test")
					for range tt.each {
						before := asked
						ticks <- time.Time{}
						synctest.Wait()
						if asked == before {
							left--
						}
						if left <= 0 {
							select {
							case answered <- struct{}{}:
							default: // nothing was asked
							}
						}
						synctest.Wait()
					}
					over()
				}
				if asked != tt.asked || (len(told) == 1) != tt.hung {
					t.Errorf("asked %d times, told %q", asked, told)
				}
				cancel()
				close(answered)
				w.running.Wait()
			})
		})
	}
}

// A disk that hangs in any step of a commit is the end of the Store; one that
// is busy for as long, but answers something small, is not.
func TestHungDisk(t *testing.T) {
	b, d := content(1000)
	for _, step := range []string{"sync file", "rename", "sync folder"} {
		for _, busy := range []bool{false, true} {
			name := step + ", hung"
			if busy {
				name = step + ", busy"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { testHungDisk(t, step, busy, b, d) })
			})
		}
	}
}

func testHungDisk(t *testing.T, step string, busy bool, b []byte, d digest.Digest) {
	goOn := make(chan struct{})
	wait := func(here bool) {
		if here {
			<-goOn
		}
	}
	fatal := make(chan error, 2)
	s := newStore(t, Config{Fatal: func(err error) { fatal <- err }, sys: system{
		syncFile: func(f *os.File) error {
			probe := strings.HasPrefix(filepath.Base(f.Name()), "probe-")
			wait(step == "sync file" && !probe || probe && !busy)
			return nil
		},
		rename: func(root, from, to string) error { wait(step == "rename"); return rename(root, from, to) },
		syncFolder: func(path string) error {
			wait(step == "sync folder" && filepath.Base(path) == d.Encoded()[:2])
			return nil
		},
	}})
	put := make(chan error, 1)
	go func() { put <- s.Put(t.Context(), d, -1, bytes.NewReader(b)) }()
	<-time.After((2*hungTicks - 1) * time.Second)
	synctest.Wait()
	if len(fatal) != 0 || s.Full() != nil {
		t.Fatalf("given up early: %v", s.Full())
	}
	<-time.After(2 * time.Second)
	synctest.Wait()
	if hung := len(fatal) == 1 && s.Full() != nil; hung == busy {
		t.Errorf("hung: %v, told %d times", hung, len(fatal))
	}
	close(goOn)
	must(t, <-put) // it went well after all
	synctest.Wait()
	wantFiles(t, s, 1)
	_, held := s.Touch(d)
	if held != busy {
		t.Errorf("held: %v", held)
	}
}
