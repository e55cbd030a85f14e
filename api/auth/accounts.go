package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Kind is what an account is for.
type Kind string

// The kinds of accounts. Users are people, with passwords of their own choice;
// robots have secrets made here, and may expire. File is an account of a node's
// htpasswd file.
const (
	User  Kind = "user"
	Robot Kind = "robot"
	File  Kind = "file"
)

// Account is what may be told about an account.
type Account struct {
	Name    string    `json:"name"`
	Kind    Kind      `json:"kind"`
	Admin   bool      `json:"admin"`            // may do everything, whatever the policy says
	Made    time.Time `json:"made,omitzero"`    // by the clock of the node that made it
	Expires time.Time `json:"expires,omitzero"` // zero: never
	Broken  bool      `json:"broken,omitempty"` // this node cannot read it, and lets nobody in by it
}

// robotPrefix marks secrets of robots, so that people and scanners know them.
const robotPrefix = "flr_"

// maxAccountName bounds the name of an account, in bytes.
const maxAccountName = 64

// CheckAccountName returns ErrUnsupported unless name can be an account's: 1 to
// 64 lower-case letters, digits, ".", "_" and "-", of which the first is a
// letter or a digit; not "anonymous".
func CheckAccountName(name string) error {
	fit := name != "" && len(name) <= maxAccountName && name != anonymousName
	for i, r := range name {
		fit = fit && nameRune(r) && (i > 0 || r != '.' && r != '_' && r != '-')
	}
	if !fit {
		return oci.ErrUnsupported.Because("%.80q is no account's name: 1 to %d lower-case letters, digits, . _ and -, the first a letter or digit", name, maxAccountName)
	}
	return nil
}

func nameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
}

// accountRecord is an account as the mesh keeps it.
type accountRecord struct {
	Kind    Kind      `json:"kind"`
	Admin   bool      `json:"admin,omitempty"`
	Hash    string    `json:"hash"`
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires,omitzero"`
}

// account is an account made ready to be compared with.
type account struct {
	kind          Kind
	admin         bool
	hash          []byte
	cost          int
	made, expires time.Time
	revision      uint64 // of the record; 0 for one of the file
	generation    string // another one after each change; names no secret
	broken        bool   // not understood: nobody is it
}

// readAccount reads a record. One that is not understood is an account still:
// it shuts out whoever bears its name.
func readAccount(name string, set Setting) (*account, error) {
	var rec accountRecord
	err := decodeStrict(set.Value, &rec)
	if err == nil {
		err = CheckAccountName(name)
	}
	if err == nil && rec.Kind != User && rec.Kind != Robot {
		err = fmt.Errorf("unknown kind of account %.20q", rec.Kind)
	}
	var cost int
	if err == nil {
		cost, err = hashCost(rec.Hash)
	}
	if err != nil {
		return &account{revision: set.Revision, broken: true}, err
	}
	return &account{
		kind: rec.Kind, admin: rec.Admin, hash: []byte(rec.Hash), cost: cost, made: rec.Made, expires: rec.Expires,
		revision: set.Revision, generation: strconv.FormatUint(set.Revision, 10),
	}, nil
}

// Accounts lists all accounts of the mesh and of this node's file, by name.
func (a *Authority) Accounts() ([]Account, error) {
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	var all []Account
	add := func(name string, acc *account) {
		all = append(all, Account{Name: name, Kind: acc.kind, Admin: acc.admin, Made: acc.made, Expires: acc.expires, Broken: acc.broken})
	}
	for name, acc := range s.accounts {
		add(name, acc)
	}
	if a.file != nil {
		for name, acc := range a.file.accounts(a.now()) {
			if _, hidden := s.accounts[name]; !hidden {
				add(name, acc)
			}
		}
	}
	slices.SortFunc(all, func(a, b Account) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// AddUser makes an account for a person. The first account of a mesh is an
// administrator whatever admin says. ErrConflict where there is one of that
// name, ErrUnsupported where name or password is not fit. Everywhere says that
// every live node knows it.
func (a *Authority) AddUser(ctx context.Context, actor, name, password string, admin bool) (acc Account, everywhere bool, err error) {
	if err := checkNewPassword(password); err != nil {
		return Account{}, false, err
	}
	return a.addAccount(ctx, actor, name, password, accountRecord{Kind: User, Admin: admin})
}

// AddRobot makes an account for a machine, and the secret that it logs in with,
// which is kept nowhere. It is as AddUser otherwise; a zero expires is never.
func (a *Authority) AddRobot(ctx context.Context, actor, name string, expires time.Time, admin bool) (acc Account, secret string, everywhere bool, err error) {
	secret = newSecret()
	acc, everywhere, err = a.addAccount(ctx, actor, name, secret, accountRecord{Kind: Robot, Admin: admin, Expires: expires})
	if err != nil {
		return Account{}, "", false, err
	}
	return acc, secret, everywhere, nil
}

func newSecret() string {
	b := make([]byte, 32)
	rand.Read(b)
	return robotPrefix + base64.RawURLEncoding.EncodeToString(b)
}

func (a *Authority) addAccount(ctx context.Context, actor, name, password string, rec accountRecord) (Account, bool, error) {
	if err := CheckAccountName(name); err != nil {
		return Account{}, false, err
	}
	if e := rec.Expires; !e.IsZero() && (!a.now().Before(e) || e.UTC().Year() > 9999) {
		return Account{}, false, oci.ErrUnsupported.Because("an account expires later than now and before the year 10000")
	}
	var err error
	if rec.Hash, err = a.passwords.hash(password); err != nil {
		return Account{}, false, err
	}
	rec.Made = a.now().UTC().Truncate(time.Second)
	rec.Expires = rec.Expires.UTC()
	asked := rec.Admin
	everywhere, err := a.change(ctx, actor, func(s *state) ([]Change, error) {
		if s.accounts[name] != nil {
			return nil, oci.ErrConflict.Because("there is an account %s already", name)
		}
		rec.Admin = asked || len(s.accounts) == 0
		return withRoster(s, name, 0, &rec)
	})
	return Account{Name: name, Kind: rec.Kind, Admin: rec.Admin, Made: rec.Made, Expires: rec.Expires}, everywhere, err
}

// SetPassword gives a user another password, which ends all its tokens.
// ErrNotFound where there is no such user in the mesh.
func (a *Authority) SetPassword(ctx context.Context, actor, name, password string) (everywhere bool, err error) {
	if err := checkNewPassword(password); err != nil {
		return false, err
	}
	return a.rehash(ctx, actor, name, User, password)
}

// RotateRobot gives a robot another secret and returns it; the former one, and
// all tokens, end. ErrNotFound where there is no such robot.
func (a *Authority) RotateRobot(ctx context.Context, actor, name string) (secret string, everywhere bool, err error) {
	secret = newSecret()
	if everywhere, err = a.rehash(ctx, actor, name, Robot, secret); err != nil {
		return "", false, err
	}
	return secret, everywhere, nil
}

func (a *Authority) rehash(ctx context.Context, actor, name string, kind Kind, password string) (bool, error) {
	hash, err := a.passwords.hash(password)
	if err != nil {
		return false, err
	}
	return a.change(ctx, actor, func(s *state) ([]Change, error) {
		acc := s.accounts[name]
		if acc == nil || acc.broken || acc.kind != kind {
			return nil, oci.ErrNotFound.Because("there is no %s %.80q", kind, name)
		}
		b, err := json.Marshal(accountRecord{Kind: kind, Admin: acc.admin, Hash: hash, Made: acc.made, Expires: acc.expires})
		return []Change{{Key: accountPrefix + name, Value: b, If: &acc.revision}}, err
	})
}

// RemoveAccount removes an account of the mesh; its password and tokens are
// refused from then on. ErrNotFound where there is none. The last one, without
// which a mesh may be open to everybody, goes only where last says so:
// ErrConflict otherwise.
func (a *Authority) RemoveAccount(ctx context.Context, actor, name string, last bool) (everywhere bool, err error) {
	return a.change(ctx, actor, func(s *state) ([]Change, error) {
		acc := s.accounts[name]
		if acc == nil {
			return nil, oci.ErrNotFound.Because("there is no account %.80q", name)
		}
		if len(s.accounts) == 1 && !last {
			return nil, oci.ErrConflict.Because("%s is the last account: without any, everybody may do everything", name)
		}
		return withRoster(s, name, acc.revision, nil)
	})
}

// withRoster returns the changes that make an account rec, or remove it where
// rec is nil. They change the roster too, on which all who add and remove
// accounts meet: so exactly one account is the first, and one the last.
func withRoster(s *state, name string, revision uint64, rec *accountRecord) ([]Change, error) {
	account := Change{Key: accountPrefix + name, If: &revision}
	if rec != nil {
		var err error
		if account.Value, err = json.Marshal(rec); err != nil {
			return nil, fmt.Errorf("encode account: %w", err)
		}
	}
	return []Change{account, {Key: rosterKey, Value: []byte(strconv.Quote(name)), If: &s.roster}}, nil
}

// maxChanges bounds how often a change is decided anew because of others.
const maxChanges = 10

// change makes the changes that decide sees fit. Where others changed the same
// at the same time, it is asked again, about what is there then.
func (a *Authority) change(ctx context.Context, actor string, decide func(*state) ([]Change, error)) (everywhere bool, err error) {
	for range maxChanges {
		// A decision on old settings would be refused, or, worse, be a refusal
		// for a reason that is gone.
		if err := a.settings.Sync(ctx); err != nil {
			return false, err
		}
		s, err := a.current()
		if err != nil {
			return false, err
		}
		changes, err := decide(s)
		if err != nil {
			return false, err
		}
		everywhere, err = a.settings.Change(ctx, actor, changes...)
		if !errors.Is(err, oci.ErrConflict) {
			return everywhere, err
		}
	}
	return false, oci.ErrConflict.Because("others keep changing accounts")
}
