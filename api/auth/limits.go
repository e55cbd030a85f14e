package auth

import (
	"math"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// What holds where the policy document says nothing: enough for a cluster that
// starts all its pods at once.
const (
	defaultAccountRequests = 1000
	defaultAddressRequests = 500
	defaultUploads         = 256
)

// maxRates bounds how many clients a node tells apart by rate. Who is forgotten
// starts with a full burst.
const maxRates = 10_000

// Wrong passwords from one address, per second and at once: a check costs a CPU
// some 50 ms, and one client must not have all of it.
const (
	guesses      = 10
	guessesBurst = 50
)

// Limits returns the limits in force here, defaults filled in.
func (a *Authority) Limits() Limits {
	s, err := a.current()
	if err != nil {
		return Limits{}.orDefaults()
	}
	return s.document.Limits.orDefaults()
}

func (l Limits) orDefaults() Limits {
	if l.AccountRequests == 0 {
		l.AccountRequests = defaultAccountRequests
	}
	if l.AddressRequests == 0 {
		l.AddressRequests = defaultAddressRequests
	}
	if l.Uploads == 0 {
		l.Uploads = defaultUploads
	}
	return l
}

// Admit counts a request of p: against its account, or, of nobody in particular,
// against the address it comes from. It is to be asked about requests that
// Identify refused as well, as nobody's. Where there were too many it returns
// ErrTooManyRequests, and after how long the next may come.
//
// While nobody has an account, only limits that the policy document names count.
func (a *Authority) Admit(r *http.Request, p Principal) (wait time.Duration, err error) {
	s, err := a.current()
	if err != nil {
		return 0, err
	}
	l := s.document.Limits.orDefaults()
	if p.Anonymous() {
		if a.open(s) && s.document.Limits.AddressRequests == 0 {
			return 0, nil
		}
		return a.addressRates.take(clientAddress(r), l.AddressRequests, burst(l.AddressRequests), a.now())
	}
	return a.accountRates.take(p.name, l.AccountRequests, burst(l.AccountRequests), a.now())
}

// burst is what comes in two seconds.
func burst(perSecond float64) int { return int(math.Ceil(2 * perSecond)) }

// clientAddress returns what stands for the other end of the connection: its
// address, or the /64 that one IPv6 client commonly has all of. Headers are not
// believed.
func clientAddress(r *http.Request) string {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}

// rates counts what many clients do, in a bounded space: a bucket of tokens for
// each.
type rates struct {
	buckets *lru[string, *rate.Limiter]
}

func newRates() *rates { return &rates{newLRU[string, *rate.Limiter](maxRates)} }

// bucket returns the client's, which fills at perSecond and holds burst.
func (s *rates) bucket(client string, perSecond float64, burst int, now time.Time) *rate.Limiter {
	limit := rate.Limit(perSecond)
	b, ok := s.buckets.get(client)
	if !ok {
		b = s.buckets.add(client, rate.NewLimiter(limit, burst))
	}
	if b.Limit() != limit || b.Burst() != burst { // the document has changed
		b.SetLimitAt(now, limit)
		b.SetBurstAt(now, burst)
	}
	return b
}

// take takes one token of the client's bucket. Where there is none it returns
// how long it will be until there is.
func (s *rates) take(client string, perSecond float64, burst int, now time.Time) (time.Duration, error) {
	res := s.bucket(client, perSecond, burst, now).ReserveN(now, 1)
	if wait := res.DelayFrom(now); wait > 0 {
		res.CancelAt(now)
		return wait, oci.ErrTooManyRequests
	}
	return 0, nil
}
