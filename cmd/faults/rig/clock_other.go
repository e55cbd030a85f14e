//go:build !(linux && amd64)

package rig

import (
	"errors"
	"time"
)

func clockLacks() string {
	return "the code that steps a process's clock is written for Linux on amd64"
}

// SetClock steps the node's wall clock, where it can.
func (n *Node) SetClock(time.Duration) error { return errors.New(clockLacks()) }

// Age makes the node's process older than it is, where it can.
func (n *Node) Age(time.Duration) error { return errors.New(clockLacks()) }

type clocks struct{}
