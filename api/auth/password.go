package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Lengths of passwords in bytes. bcrypt does not look beyond the longest.
const (
	minPassword = 8
	maxPassword = 72
)

// What bcrypt may cost, as a power of two: more, and a stranger's guess holds a
// CPU for seconds.
const (
	defaultCost = bcrypt.DefaultCost
	maxCost     = 14
)

// How much is remembered, and how many checks may wait for each that runs.
const (
	maxRemembered = 4096
	maxWaiting    = 32
)

// hashGrammar is what bcrypt writes in versions that are sound.
var hashGrammar = regexp.MustCompile(`^\$2[aby]\$(0[4-9]|1[0-4])\$[./A-Za-z0-9]{53}$`)

// errWrongPassword does not say whether there is such an account.
var errWrongPassword = oci.ErrUnauthorized.Because("wrong name or password")

// passwords checks passwords: a bounded number at a time, and the same one of
// the same account once only.
type passwords struct {
	cost  int
	dummy [maxCost + 1][]byte // hashes of nothing that anyone knows, by cost

	seed       [32]byte // of this process
	remembered *lru[[sha256.Size]byte, struct{}]

	running chan struct{} // a token for each check that runs
	waiting chan struct{} // and for each that runs or waits
}

func newPasswords(cost int, seed [32]byte, parallel int) (*passwords, error) {
	if cost == 0 {
		cost = defaultCost
	}
	if cost < bcrypt.MinCost || cost > maxCost {
		return nil, fmt.Errorf("bcrypt's cost is from %d to %d", bcrypt.MinCost, maxCost)
	}
	p := &passwords{
		cost: cost, seed: seed,
		remembered: newLRU[[sha256.Size]byte, struct{}](maxRemembered),
		running:    make(chan struct{}, parallel),
		waiting:    make(chan struct{}, parallel*(1+maxWaiting)),
	}
	// Only the cost of a dummy matters: one hash serves for all, its cost rewritten.
	hash, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), bcrypt.MinCost)
	if err != nil {
		return nil, fmt.Errorf("hash: %w", err)
	}
	for c := bcrypt.MinCost; c <= maxCost; c++ {
		p.dummy[c] = fmt.Appendf(nil, "$2a$%02d%s", c, hash[len("$2a$04"):])
	}
	return p, nil
}

// checkNewPassword returns ErrUnsupported unless the password may be an account's.
func checkNewPassword(password string) error {
	switch {
	case len(password) < minPassword || len(password) > maxPassword:
		return oci.ErrUnsupported.Because("a password has %d to %d bytes", minPassword, maxPassword)
	case !utf8.ValidString(password) || strings.ContainsFunc(password, unicode.IsControl):
		return oci.ErrUnsupported.Because("a password is UTF-8 without control characters")
	}
	return nil
}

// hash returns what is kept of a password.
func (p *passwords) hash(password string) (string, error) {
	b, err := bcrypt.GenerateFromPassword([]byte(password), p.cost)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	return string(b), nil
}

// key stands for name and password of an account as it is now, in this process
// alone. None of the first two parts holds a zero byte.
func (p *passwords) key(acc *account, name, password string) (key [sha256.Size]byte) {
	generation := ""
	if acc != nil {
		generation = acc.generation
	}
	mac := hmac.New(sha256.New, p.seed[:])
	mac.Write([]byte(name + "\x00" + generation + "\x00" + password))
	mac.Sum(key[:0])
	return key
}

// check compares the password with the account's, nil being no account at all:
// that takes as long, and as long as for an account with the dearest hash, so
// that time does not tell which names exist. highest is the cost of that hash.
func (p *passwords) check(ctx context.Context, acc *account, password string, highest int) error {
	select {
	case p.waiting <- struct{}{}:
		defer func() { <-p.waiting }()
	default:
		return oci.ErrTooManyRequests.Because("too many passwords to check at once")
	}
	select {
	case p.running <- struct{}{}:
		defer func() { <-p.running }()
	case <-ctx.Done():
		return ctx.Err()
	}
	cost := highest
	hash := p.dummy[highest]
	if acc != nil && !acc.broken {
		cost, hash = acc.cost, acc.hash
	}
	if bcrypt.CompareHashAndPassword(hash, []byte(password)) == nil && acc != nil && !acc.broken {
		return nil
	}
	// Each step doubles the work: 2^cost done, and these add up to 2^highest.
	for ; cost < highest; cost++ {
		_ = bcrypt.CompareHashAndPassword(p.dummy[cost], []byte(password)) // for its time alone
	}
	return errWrongPassword
}

// login returns who name is, if the password is its.
func (a *Authority) login(r *http.Request, name, password string) (Principal, error) {
	s, err := a.current()
	if err != nil {
		return Principal{}, err
	}
	// No account can have these, and no time is spent on them whatever there is.
	// bcrypt takes zero bytes and what comes after the longest for less than
	// they are.
	if CheckAccountName(name) != nil || password == "" || len(password) > maxPassword || strings.Contains(password, "\x00") {
		return Principal{}, errWrongPassword
	}
	acc, _ := a.account(s, name)
	key := a.passwords.key(acc, name, password)
	if _, ok := a.passwords.remembered.get(key); !ok || acc == nil {
		if err := a.guess(r, s, acc, password); err != nil {
			return Principal{}, err
		}
		a.passwords.remembered.add(key, struct{}{})
	}
	if err := acc.usable(a.now()); err != nil {
		return Principal{}, err
	}
	return Principal{name: name, generation: acc.generation}, nil
}

// guess checks a password, unless too many wrong ones came from this address.
// Those that are being checked do not count yet. Each of them that is wrong
// does later, below zero too: else many at once would cost no more than one.
func (a *Authority) guess(r *http.Request, s *state, acc *account, password string) error {
	bucket := a.guessRates.bucket(clientAddress(r), guesses, guessesBurst, a.now())
	if bucket.TokensAt(a.now()) < 1 {
		return oci.ErrTooManyRequests.Because("too many wrong passwords from this address")
	}
	err := a.passwords.check(r.Context(), acc, password, a.highestCost(s))
	if errors.Is(err, oci.ErrUnauthorized) {
		bucket.ReserveN(a.now(), 1)
	}
	return err
}

// highestCost returns the cost of the dearest hash that any account may have.
func (a *Authority) highestCost(s *state) int {
	highest := max(a.passwords.cost, s.highestCost)
	if a.file != nil {
		highest = max(highest, a.file.highestCost(a.now()))
	}
	return highest
}

// hashCost returns the cost of a hash that is fit to be kept.
func hashCost(hash string) (int, error) {
	m := hashGrammar.FindStringSubmatch(hash)
	if m == nil {
		return 0, fmt.Errorf("not a bcrypt hash of cost 4 to %d ($2a$, $2b$ or $2y$)", maxCost)
	}
	return strconv.Atoi(m[1])
}
