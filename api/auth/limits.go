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

// guessPrice is how many requests a password counts for that has to be checked:
// a check costs a CPU some 50 ms.
const guessPrice = 10

// Limits returns the limits in force here, defaults filled in.
func (a *Authority) Limits() Limits {
	var l Limits
	if s, err := a.current(); err == nil {
		l = s.document.Limits
	}
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
	l := a.Limits()
	if p.Anonymous() {
		if a.open(s) && s.document.Limits.AddressRequests == 0 {
			return 0, nil
		}
		return a.addressRates.take(clientAddress(r), l.AddressRequests, 1, a.now())
	}
	return a.accountRates.take(p.name, l.AccountRequests, 1, a.now())
}

// admitGuess counts a password that has to be checked against the address that
// it comes from.
func (a *Authority) admitGuess(r *http.Request) error {
	_, err := a.addressRates.take(clientAddress(r), a.Limits().AddressRequests, guessPrice, a.now())
	return err
}

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

// rates counts requests of many clients, in a bounded space.
type rates[K comparable] struct {
	buckets *lru[K, *rate.Limiter]
}

func newRates[K comparable]() *rates[K] {
	return &rates[K]{newLRU[K, *rate.Limiter](maxRates)}
}

// take takes n tokens of the client's bucket, which fills at perSecond and holds
// what comes in two seconds. Where there are not enough it takes none, and
// returns how long that will be.
func (s *rates[K]) take(client K, perSecond float64, n int, now time.Time) (time.Duration, error) {
	limit, burst := rate.Limit(perSecond), max(int(math.Ceil(2*perSecond)), guessPrice)
	b, ok := s.buckets.get(client)
	if !ok {
		b = s.buckets.add(client, rate.NewLimiter(limit, burst))
	}
	if b.Limit() != limit || b.Burst() != burst { // the document has changed
		b.SetLimitAt(now, limit)
		b.SetBurstAt(now, burst)
	}
	res := b.ReserveN(now, n)
	if wait := res.DelayFrom(now); wait > 0 {
		res.CancelAt(now)
		return wait, oci.ErrTooManyRequests
	}
	return 0, nil
}
