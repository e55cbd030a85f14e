package auth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Setting is a small named value that the mesh agrees on.
type Setting struct {
	Key      string
	Value    []byte
	Revision uint64 // differs between any two writes of the key, and grows
}

// Change writes one setting.
type Change struct {
	Key   string
	Value []byte  // nil removes it
	If    *uint64 // nil: whatever there is; 0: it must be absent; else the revision it must have
}

// Settings is what the mesh agrees on. The methods that read do so from this
// node's copy.
type Settings interface {
	// Version is another one after each change that this node has applied. It
	// is asked on every request.
	Version() uint64
	// List returns all settings whose keys begin with prefix.
	List(prefix string) ([]Setting, error)
	// Change makes all changes or none, and returns once this node has applied
	// them; everywhere says whether every live node has. ErrConflict where a
	// setting has another revision than the change says.
	Change(ctx context.Context, actor string, changes ...Change) (everywhere bool, err error)
	// Sync returns once this node's copy holds all that was agreed on before
	// the call.
	Sync(ctx context.Context) error
}

// The keys of the settings that this package gives a meaning to.
const (
	prefix        = "auth/"
	accountPrefix = prefix + "account/" // and the name: an accountRecord
	rosterKey     = prefix + "roster"   // changes with every account that comes or goes
	keysKey       = prefix + "token-keys"
	policyKey     = prefix + "policy" // a Document
)

// Config is what an Authority is made of. Settings, Mesh and Log are required.
type Config struct {
	Settings Settings
	// Mesh returns the mesh's id, which tokens are bound to; "" while this
	// node's copy of the settings is of none, and then there are no tokens.
	Mesh func() string
	// Htpasswd is the path of a file of accounts on this node alone; "" is none.
	// Tokens of its accounts are good at nodes whose files have the same line.
	Htpasswd string
	// Certificates says that the public port verifies client certificates: the
	// common name of one is the name of the account that shows it.
	Certificates bool
	// PublicURL is how clients reach the registry, scheme and host, where that
	// is not what a request itself says; "" otherwise.
	PublicURL string
	// Cost is bcrypt's for new passwords; 0 is 10.
	Cost int
	Now  func() time.Time // nil is time.Now
	Log  *slog.Logger
}

// Authority decides who may do what at one node. Its methods may be called
// from several goroutines.
type Authority struct {
	settings  Settings
	mesh      func() string
	certs     bool
	publicURL string
	now       func() time.Time
	log       *slog.Logger

	state   atomic.Pointer[state]
	loading sync.Mutex // held by whoever makes the next state

	file      *htpasswd // nil: none
	passwords *passwords
	verified  *lru[verifiedKey, *verified] // tokens that were checked before
	looks     *rate.Limiter                // of Sync for the sake of unknown keys

	rotating    chan struct{} // holds a token while somebody proposes a new key
	rotateAfter time.Time     // no earlier try, after one that failed; of whoever rotates

	accountRates *rates // requests, by account
	addressRates *rates // requests of nobody in particular, by address
	guessRates   *rates // wrong passwords, by address

	proof *proof
}

// New returns an Authority. A htpasswd file that cannot be read or is not fit
// is an error here; later on, the last good one stays.
func New(cfg Config) (*Authority, error) {
	if cfg.Settings == nil || cfg.Mesh == nil || cfg.Log == nil {
		return nil, errors.New("auth: incomplete Config")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	publicURL, err := checkPublicURL(cfg.PublicURL)
	if err != nil {
		return nil, err
	}
	a := &Authority{
		settings: cfg.Settings, mesh: cfg.Mesh, certs: cfg.Certificates, publicURL: publicURL,
		now: cfg.Now, log: cfg.Log,
		verified: newLRU[verifiedKey, *verified](maxVerified),
		looks:    rate.NewLimiter(10, 20),
		rotating: make(chan struct{}, 1),

		accountRates: newRates(), addressRates: newRates(), guessRates: newRates(),
		proof: newProof(),
	}
	if cfg.Htpasswd != "" {
		if a.file, err = openHtpasswd(cfg.Htpasswd, cfg.Now(), cfg.Log); err != nil {
			return nil, err
		}
	}
	var seed [32]byte
	rand.Read(seed[:])
	a.passwords, err = newPasswords(cfg.Cost, seed, runtime.GOMAXPROCS(0))
	return a, err
}

// checkPublicURL returns the URL without a slash at its end.
func checkPublicURL(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || !validHost(u.Host) ||
		u.User != nil || strings.Trim(u.Path, "/") != "" || strings.ContainsAny(text, "?#") {
		return "", fmt.Errorf("public URL %q is not http or https and a host: a registry has no path", text)
	}
	return u.Scheme + "://" + u.Host, nil
}

// state is one reading of all settings; it never changes.
type state struct {
	version  uint64
	accounts map[string]*account
	// highestCost is that of the dearest hash among the accounts.
	highestCost int
	roster      uint64 // revision of the roster, 0 where there is none
	keys        keyring
	policy      *policy
	document    Document
	revision    uint64 // of the document, 0 where there is none
}

// current returns the settings as this node knows them now. An error means
// that nobody can be told apart: nothing may be allowed then.
func (a *Authority) current() (*state, error) {
	if s := a.state.Load(); s != nil && s.version == a.settings.Version() {
		return s, nil
	}
	a.loading.Lock()
	defer a.loading.Unlock()
	// The version comes first: what is listed after it is at least as new, so
	// a change in between leads to one reading too many, not to a missed one.
	version := a.settings.Version()
	if s := a.state.Load(); s != nil && s.version == version {
		return s, nil
	}
	all, err := a.settings.List(prefix)
	if err != nil {
		return nil, oci.ErrUnavailable.Wrap(fmt.Errorf("read who may do what: %w", err))
	}
	s := a.read(version, all)
	a.state.Store(s)
	return s, nil
}

// read gives the settings their meaning.
func (a *Authority) read(version uint64, all []Setting) *state {
	s := &state{version: version, accounts: map[string]*account{}, policy: &policy{}}
	for _, set := range all {
		var err error
		name, isAccount := strings.CutPrefix(set.Key, accountPrefix)
		switch {
		case isAccount:
			s.accounts[name], err = readAccount(name, set)
			s.highestCost = max(s.highestCost, s.accounts[name].cost)
		case set.Key == rosterKey:
			s.roster = set.Revision
		case set.Key == keysKey:
			s.keys, err = readKeys(set)
		case set.Key == policyKey:
			s.revision = set.Revision
			s.document, s.policy, err = readPolicy(set.Value)
		default:
			err = errors.New("an unknown setting")
		}
		if err != nil {
			a.log.Error("a setting that this version cannot read; what it might allow is denied", "key", set.Key, "error", err)
		}
	}
	return s
}

// Open reports that nobody has an account yet, so that everybody may do
// everything but the admin calls. It is false where that is not known.
func (a *Authority) Open() bool {
	s, err := a.current()
	return err == nil && a.open(s)
}

func (a *Authority) open(s *state) bool {
	return len(s.accounts) == 0 && a.file == nil && !a.certs
}
