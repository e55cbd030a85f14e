package auth

import (
	"context"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// What the admin calls about accounts and policy take and answer, in JSON.

// NewAccount asks for an account.
type NewAccount struct {
	Name     string    `json:"name"`
	Kind     Kind      `json:"kind"`               // User or Robot
	Password string    `json:"password,omitempty"` // of a user; a robot's secret is made here
	Admin    bool      `json:"admin,omitempty"`
	Expires  time.Time `json:"expires,omitzero"` // of a robot; zero: never
}

// NewSecret asks for another password of a user, or another secret of a robot.
type NewSecret struct {
	Password string `json:"password,omitempty"` // "" for robots
}

// MadeAccount is an account that was added, or got another secret.
type MadeAccount struct {
	Account    Account `json:"account,omitzero"` // zero where it was there
	Secret     string  `json:"secret,omitempty"` // of a robot; it is shown once
	Everywhere bool    `json:"everywhere"`       // every live node knows it
}

// AccountList is all accounts.
type AccountList struct {
	Accounts []Account `json:"accounts"`
}

// Done answers what has no more to say.
type Done struct {
	Everywhere bool `json:"everywhere"` // every live node knows it
}

// Applied answers a policy document.
type Applied struct {
	Changes    string `json:"changes"`    // as Diff tells them
	Everywhere bool   `json:"everywhere"` // every live node judges by it
}

// Add adds an account of either kind, see AddUser and AddRobot.
func (a *Authority) Add(ctx context.Context, actor string, in NewAccount) (made MadeAccount, err error) {
	switch in.Kind {
	case User:
		if !in.Expires.IsZero() {
			return made, oci.ErrUnsupported.Because("users do not expire")
		}
		made.Account, made.Everywhere, err = a.AddUser(ctx, actor, in.Name, in.Password, in.Admin)
	case Robot:
		if in.Password != "" {
			return made, oci.ErrUnsupported.Because("a robot's secret is made by the registry")
		}
		made.Account, made.Secret, made.Everywhere, err = a.AddRobot(ctx, actor, in.Name, in.Expires, in.Admin)
	default:
		err = oci.ErrUnsupported.Because("an account is a user or a robot")
	}
	return made, err
}

// Rotate gives an account another secret: the password, or for a robot, where
// that is "", one that is made here.
func (a *Authority) Rotate(ctx context.Context, actor, name string, in NewSecret) (made MadeAccount, err error) {
	if in.Password != "" {
		made.Everywhere, err = a.SetPassword(ctx, actor, name, in.Password)
		return made, err
	}
	made.Secret, made.Everywhere, err = a.RotateRobot(ctx, actor, name)
	return made, err
}
