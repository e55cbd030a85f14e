package auth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

func from(address string) *http.Request {
	r := show(http.MethodGet, "/v2/", nil)
	r.RemoteAddr = address
	return r
}

// admitted counts how many of n requests are let through at one moment.
func (n *node) admitted(r *http.Request, p auth.Principal, tries int) (through int, wait time.Duration) {
	for range tries {
		w, err := n.Admit(r, p)
		if err == nil {
			through++
		} else if wait = w; !errors.Is(err, oci.ErrTooManyRequests) || w <= 0 {
			return -1, w
		}
	}
	return through, wait
}

func TestRequestRates(t *testing.T) {
	n := house(t)
	n.apply(t, `limits: {accountRequests: 10, addressRequests: 0.5}`)
	ann, err := n.Identify(basic("ann", annPassword))
	if err != nil {
		t.Fatal(err)
	}
	nobody := auth.Principal{}
	if got, wait := n.admitted(from("192.0.2.1:1"), ann, 100); got != 20 || wait > 100*time.Millisecond {
		t.Errorf("an account: %d of a burst of 20, then %v", got, wait)
	}
	if got, _ := n.admitted(from("192.0.2.2:1"), ann, 100); got != 0 {
		t.Errorf("the account from elsewhere: %d more", got)
	}
	n.clock.pass(time.Second)
	if got, _ := n.admitted(from("192.0.2.1:1"), ann, 100); got != 10 {
		t.Errorf("a second later: %d", got)
	}
	n.clock.pass(-time.Hour)
	if got, _ := n.admitted(from("192.0.2.1:1"), ann, 100); got > 20 {
		t.Errorf("by a clock set back: %d", got)
	}
	for _, row := range []struct {
		addresses []string
		want      int
	}{
		{[]string{"192.0.2.1:1", "192.0.2.1:2", "[::ffff:192.0.2.1]:3"}, 1},
		{[]string{"192.0.2.2:1"}, 1},
		{[]string{"[2001:db8::1]:1", "[2001:db8::ffff:1]:1"}, 1},
		{[]string{"[2001:db8:0:1::1]:1"}, 1},
		{[]string{"", "@", "pipe"}, 1},
	} {
		through := 0
		for _, address := range row.addresses {
			got, _ := n.admitted(from(address), nobody, 10)
			through += got
		}
		if through != row.want {
			t.Errorf("%v: %d", row.addresses, through)
		}
	}
	n.apply(t, `limits: {accountRequests: 1000}`)
	if got, _ := n.admitted(from("192.0.2.1:1"), ann, 100); got > 20 {
		t.Errorf("a limit that was raised gave %d at once", got)
	}
	n.clock.pass(2 * time.Second)
	if got, _ := n.admitted(from("192.0.2.1:1"), ann, 3000); got != 2000 {
		t.Errorf("a limit that was raised: %d", got)
	}
	if want := (auth.Limits{AccountRequests: 1000, AddressRequests: 500, Uploads: 256}); n.Limits() != want {
		t.Errorf("limits %+v, want %+v", n.Limits(), want)
	}
}

func TestNoLimitsUnlessSomebodySaysSo(t *testing.T) {
	n := newNode(t, newAgreed(), morning(), nil)
	if got, _ := n.admitted(from("192.0.2.1:1"), auth.Principal{}, 5000); got != 5000 {
		t.Errorf("%d of 5000 while nobody has an account", got)
	}
	n.apply(t, `limits: {addressRequests: 1}`)
	if got, _ := n.admitted(from("192.0.2.1:1"), auth.Principal{}, 5000); got != 2 {
		t.Errorf("%d of a burst of 2", got)
	}
}

func TestAttackGuessingPasswords(t *testing.T) {
	n := house(t)
	checked, refused := 0, 0
	for i := range 200 {
		_, err := n.Identify(basic("ann", fmt.Sprintf("guess %d", i)))
		switch {
		case errors.Is(err, oci.ErrUnauthorized):
			checked++
		case errors.Is(err, oci.ErrTooManyRequests):
			refused++
		}
	}
	if checked != 50 || refused != 150 {
		t.Errorf("at one moment %d were checked and %d refused", checked, refused)
	}
	right := basic("ann", annPassword)
	wantErr(t, "the right one, not known here, from that address", n.may(right, "team-a/x", auth.Pull), oci.ErrTooManyRequests)
	right.RemoteAddr = "192.0.2.77:1"
	wantErr(t, "from elsewhere", n.may(right, "team-a/x", auth.Pull), nil)
	right.RemoteAddr = basic("ann", annPassword).RemoteAddr
	wantErr(t, "from that address, known by now", n.may(right, "team-a/x", auth.Pull), nil)
}

// TestAttackGuessingManyAtOnce sends guesses from one address as fast as they
// are answered, many at a time: on average they are no more than one by one.
func TestAttackGuessingManyAtOnce(t *testing.T) {
	n := house(t)
	const together, tenths = 16, 100
	var checked atomic.Int64
	for range tenths {
		var all sync.WaitGroup
		for i := range together {
			all.Go(func() {
				_, err := n.Identify(basic("ann", fmt.Sprintf("guess %d", i)))
				if errors.Is(err, oci.ErrUnauthorized) {
					checked.Add(1)
				}
			})
		}
		all.Wait()
		n.clock.pass(100 * time.Millisecond)
	}
	// A burst of 50, 10 a second, and once the ones that were under way then.
	if got := checked.Load(); got > 50+tenths+together {
		t.Errorf("%d guesses were checked in %d tenths of a second", got, tenths)
	}
}

// TestAttackManyPasswordsAtOnce has more passwords come than may wait, from
// clients of whom some leave: each is answered, and none holds a place for ever.
func TestAttackManyPasswordsAtOnce(t *testing.T) {
	n := house(t)
	tries := 3 * runtime.GOMAXPROCS(0) * 33
	gone, leave := context.WithCancel(ctxOf(t))
	leave()
	results := make([]error, tries)
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range tries {
		all.Go(func() {
			r := basic("ann", fmt.Sprintf("guess %d", i))
			if i%2 == 0 {
				r = r.WithContext(gone)
			}
			r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", i%256)
			<-begin
			_, results[i] = n.Identify(r)
		})
	}
	close(begin)
	all.Wait()
	for _, err := range results {
		if !errors.Is(err, oci.ErrUnauthorized) && !errors.Is(err, oci.ErrTooManyRequests) && !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	wantErr(t, "after that", n.may(basic("ann", annPassword), "team-a/x", auth.Pull), nil)
}
