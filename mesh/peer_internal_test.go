package mesh

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// told receives the status lines that are written to it, as long as there is room.
type told chan int

func (told) Header() http.Header         { return http.Header{} }
func (told) Write(p []byte) (int, error) { return len(p), nil }
func (c told) WriteHeader(status int) {
	select {
	case c <- status:
	default:
	}
}

// TestStayAlive: who may wait is told again and again that this node is alive,
// and nothing after that is over. Nobody else is told.
func TestStayAlive(t *testing.T) {
	for _, row := range []struct {
		name string
		q    question
		want int // times in five seconds
	}{
		{"for the gateway", question{gateway: true}, 2},
		{"for the first byte", question{place: 7}, 2},
		{"further on", question{place: 7, off: 1}, 0},
		{"out of the line", question{}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &Blobs{patience: Patience{Answer: 4 * time.Second}}
				statuses := make(told, 10)
				quiet := b.stayAlive(statuses, row.q)
				<-time.After(5 * time.Second)
				quiet()
				<-time.After(5 * time.Second)
				if len(statuses) != row.want {
					t.Fatalf("told %d times, want %d", len(statuses), row.want)
				}
				for range row.want {
					if status := <-statuses; status != http.StatusProcessing {
						t.Errorf("status %d", status)
					}
				}
			})
		})
	}
}
