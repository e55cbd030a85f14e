package bench

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options say what is measured and how. The zero value of a field stands for its
// default: Defaults lists them, and QuickDefaults those that Quick selects.
type Options struct {
	// Targets are the registries: [NAME=]URL[,URL...]. Several URLs of one target
	// are nodes of one registry, and the workers spread over them. A URL may hold
	// user:password, and a path, which then leads the names of the repositories.
	Targets []string
	// PIDs holds, by position in Targets, the target's server processes on this
	// machine: "12", "12,13", or "" for none.
	PIDs        []string
	InsecureTLS bool // accept any certificate

	Workloads []string // names, see Workloads; empty: all
	Quick     bool     // small sizes: shows that all works, and little else

	Settings

	JSON     bool     // write the Report as JSON instead of the table
	Progress *os.File // shows how far it is, if it is a terminal; may be nil
}

// Settings are the numbers and sizes of a run.
type Settings struct {
	Rounds   int           `json:"rounds"`      // measured rounds of each workload
	Duration time.Duration `json:"duration_ns"` // length of a round where requests are counted
	Requests int           `json:"requests"`    // end such a round earlier, after so many
	Workers  int           `json:"workers"`     // concurrent clients, where the workload has several

	Size      Size `json:"size"`       // the blob of the monolithic, chunked and whole workloads
	Chunk     Size `json:"chunk"`      // one PATCH of a chunked push
	Parts     int  `json:"parts"`      // blobs of the parallel workloads
	PartSize  Size `json:"part_size"`  // one of these
	Range     Size `json:"range"`      // one range GET
	Tags      int  `json:"tags"`       // of the repository with many
	Page      int  `json:"page"`       // tags asked for in one request
	Layers    int  `json:"layers"`     // of the image
	LayerSize Size `json:"layer_size"` // one of these
	Transfers int  `json:"transfers"`  // layers under way at once

	Limit time.Duration `json:"limit_ns"` // the longest that a cell may prepare, or run, a round
}

// Defaults are the settings of a full run.
func Defaults() Settings {
	return Settings{
		Rounds: 5, Duration: 2 * time.Second, Requests: 50_000, Workers: 8,
		Size: 256 * mib, Chunk: 8 * mib, Parts: 16, PartSize: 16 * mib, Range: 64 * kib,
		Tags: 10_000, Page: 1000, Layers: 10, LayerSize: 4 * mib, Transfers: 4,
		Limit: 5 * time.Minute,
	}
}

// QuickDefaults are the settings of a quick run.
func QuickDefaults() Settings {
	o := Defaults()
	o.Rounds, o.Duration, o.Requests = 3, 250*time.Millisecond, 2000
	o.Size, o.Chunk, o.Parts, o.PartSize = 16*mib, 2*mib, 8, 2*mib
	o.Tags, o.Page, o.LayerSize = 500, 100, 512*kib
	return o
}

// filled returns o with defaults in place of zero values.
func (o Options) filled() Options {
	d := Defaults()
	if o.Quick {
		d = QuickDefaults()
	}
	for p, v := range map[*int]int{
		&o.Rounds: d.Rounds, &o.Requests: d.Requests, &o.Workers: d.Workers, &o.Parts: d.Parts,
		&o.Tags: d.Tags, &o.Page: d.Page, &o.Layers: d.Layers, &o.Transfers: d.Transfers,
	} {
		if *p == 0 {
			*p = v
		}
	}
	for p, v := range map[*Size]Size{
		&o.Size: d.Size, &o.Chunk: d.Chunk, &o.PartSize: d.PartSize, &o.Range: d.Range, &o.LayerSize: d.LayerSize,
	} {
		if *p == 0 {
			*p = v
		}
	}
	for p, v := range map[*time.Duration]time.Duration{&o.Duration: d.Duration, &o.Limit: d.Limit} {
		if *p == 0 {
			*p = v
		}
	}
	return o
}

// Check reports the first thing that is wrong with the options themselves.
func (o Options) Check() error {
	o = o.filled()
	if len(o.Targets) == 0 {
		return errors.New("no registry to measure: give at least one URL")
	}
	if len(o.PIDs) > len(o.Targets) {
		return fmt.Errorf("%d process ids for %d registries", len(o.PIDs), len(o.Targets))
	}
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"rounds", int64(o.Rounds)}, {"duration", int64(o.Duration)}, {"requests", int64(o.Requests)},
		{"workers", int64(o.Workers)}, {"size", int64(o.Size)}, {"chunk", int64(o.Chunk)},
		{"parts", int64(o.Parts)}, {"part size", int64(o.PartSize)}, {"range", int64(o.Range)},
		{"tags", int64(o.Tags)}, {"page", int64(o.Page)}, {"layers", int64(o.Layers)},
		{"layer size", int64(o.LayerSize)}, {"transfers", int64(o.Transfers)}, {"limit", int64(o.Limit)},
	} {
		if n.value < 0 {
			return fmt.Errorf("%s: %d is negative", n.name, n.value)
		}
	}
	if o.Range > o.PartSize {
		return fmt.Errorf("range of %s in a blob of %s: make the part size larger", o.Range, o.PartSize)
	}
	if _, err := pick(o.Workloads); err != nil {
		return err
	}
	_, err := parseTargets(o)
	return err
}

// Size is a number of bytes. Its methods make it a flag value.
type Size int64

const (
	kib Size = 1 << 10
	mib Size = 1 << 20
	gib Size = 1 << 30
)

// String is the size in the largest unit that divides it.
func (s Size) String() string {
	switch {
	case s >= gib && s%gib == 0:
		return fmt.Sprintf("%dGiB", s/gib)
	case s >= mib && s%mib == 0:
		return fmt.Sprintf("%dMiB", s/mib)
	case s >= kib && s%kib == 0:
		return fmt.Sprintf("%dKiB", s/kib)
	default:
		return strconv.FormatInt(int64(s), 10)
	}
}

// Set reads a size: bytes, or a number with KiB, MiB or GiB (K, M, G for short).
func (s *Size) Set(text string) error {
	digits := strings.TrimRight(strings.ToLower(text), "kmgib")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 {
		return fmt.Errorf("%q is not a size such as 65536, 64KiB or 16MiB", text)
	}
	units := map[string]Size{
		"": 1, "b": 1, "k": kib, "kib": kib, "m": mib, "mib": mib, "g": gib, "gib": gib,
	}
	unit, ok := units[strings.ToLower(text[len(digits):])]
	if !ok || n > (1<<40)/int64(unit) {
		return fmt.Errorf("%q is not a size such as 65536, 64KiB or 16MiB, of at most 1024GiB", text)
	}
	*s = Size(n) * unit
	return nil
}

// Type is what a flag's help calls the value.
func (s *Size) Type() string { return "size" }

// Workload describes one row of the table.
type Workload struct{ Name, Unit, About string }

// Workloads lists what can be measured, in the order it is.
func Workloads() []Workload {
	var list []Workload
	for _, w := range workloads() {
		list = append(list, Workload{w.name, string(w.unit), w.about})
	}
	return list
}

// pick returns the named workloads in the order of the table; all if none is.
func pick(names []string) ([]workload, error) {
	all := workloads()
	if len(names) == 0 {
		return all, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(w workload) bool { return w.name == name }) {
			var known []string
			for _, w := range all {
				known = append(known, w.name)
			}
			return nil, fmt.Errorf("no workload %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(w workload) bool { return !slices.Contains(names, w.name) }), nil
}
