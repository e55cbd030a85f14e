package metadata

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
)

// Epoch tells a mesh from what it was before a recovery, and what two
// recoveries made of it from one another. The founder's is 1. Recovery counts
// on in the upper half, and the lower half is random: people may recover two
// nodes that know nothing of each other, and what these hold then differs for
// ever, although both have been recovered equally often.
type Epoch uint64

// next returns an epoch that a recovery may begin after e.
func (e Epoch) next() Epoch {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return (e>>32+1)<<32 | Epoch(binary.BigEndian.Uint32(b[:]))
}

// Recoveries counts those that led to e.
func (e Epoch) Recoveries() uint32 { return uint32(e >> 32) }

// String returns the number of e among the epochs of its mesh and, once it was
// recovered, what sets it apart: "1", "2-9f3a01c7".
func (e Epoch) String() string {
	if e.Recoveries() == 0 {
		return fmt.Sprint(uint64(e))
	}
	return fmt.Sprintf("%d-%08x", e.Recoveries()+1, uint32(e))
}
