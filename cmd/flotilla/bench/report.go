package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Report is the outcome of a run; its JSON is the machine form. Fields are only
// ever added.
type Report struct {
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"` // the whole run, cleaning up included
	Machine  Machine   `json:"machine"`
	Settings Settings  `json:"settings"` // those in force
	Targets  []Target  `json:"targets"`  // in the order given; ratios are to the first
	Results  []Result  `json:"results"`  // by workload, then by target
	Notes    []string  `json:"notes,omitempty"`
}

// Machine is where the client ran.
type Machine struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
	CPUs int    `json:"cpus"`
	Go   string `json:"go"`
}

// Target is one registry.
type Target struct {
	Name         string   `json:"name"`
	URLs         []string `json:"urls"` // without credentials
	PIDs         []int    `json:"pids,omitempty"`
	Repositories string   `json:"repositories"` // what the names of all its repositories began with
	Remains      *Remains `json:"remains,omitempty"`
}

// Result is one cell: a workload on a target.
type Result struct {
	Workload string   `json:"workload"`
	Target   string   `json:"target"`
	Unit     string   `json:"unit"`             // of the values: MiB/s, req/s, or ms per operation
	Failed   string   `json:"failed,omitempty"` // why there are no figures
	Samples  []Sample `json:"samples"`          // one a round

	Median float64 `json:"median"`          // of the samples' values
	Spread float64 `json:"spread_percent"`  // half their range, in percent of the median
	Ratio  float64 `json:"ratio,omitempty"` // median of the rounds' ratios to the first target; above 1 is better, for times too
	P50    float64 `json:"p50_ms,omitempty"`
	P99    float64 `json:"p99_ms,omitempty"` // medians of the rounds' percentiles, where requests are counted
	Server *Server `json:"server,omitempty"` // if process ids were given
}

// Server is what the target's processes used, over all rounds.
type Server struct {
	CPU            float64 `json:"cpu"`
	CPUUnit        string  `json:"cpu_unit"` // s/GiB where bytes are what counts, else µs/op
	PeakBytes      int64   `json:"peak_resident_bytes"`
	PeakSinceStart bool    `json:"peak_since_start,omitempty"` // of the process, as the peak could not be reset
}

// Sample is one round.
type Sample struct {
	Value      float64 `json:"value"`
	Seconds    float64 `json:"seconds"`
	Operations int     `json:"operations"`
	Bytes      int64   `json:"bytes,omitempty"` // of content moved, where that is what counts
	P50        float64 `json:"p50_ms,omitempty"`
	P99        float64 `json:"p99_ms,omitempty"`
	CPUSeconds float64 `json:"server_cpu_seconds,omitempty"`
	PeakBytes  int64   `json:"server_peak_bytes,omitempty"`
}

// summarize fills in what follows from the samples.
func (r *Result) summarize(u unit, first []Sample) {
	if r.Failed != "" {
		return
	}
	var values, p50, p99 []float64
	for _, s := range r.Samples {
		values = append(values, s.Value)
		p50, p99 = append(p50, s.P50), append(p99, s.P99)
	}
	r.Median, r.Spread = median(values), spread(values)
	r.P50, r.P99 = median(p50), median(p99)
	r.Ratio = pairedRatio(u, r.Samples, first)
	if r.Server != nil {
		r.Server.summarize(u, r.Samples)
	}
}

func (s *Server) summarize(u unit, samples []Sample) {
	var cpu float64
	var bytes int64
	var ops int
	for _, sample := range samples {
		cpu += sample.CPUSeconds
		bytes += sample.Bytes
		ops += sample.Operations
		s.PeakBytes = max(s.PeakBytes, sample.PeakBytes)
	}
	if u != rate && bytes > 0 {
		s.CPU, s.CPUUnit = cpu/(float64(bytes)/float64(gib)), "s/GiB"
	} else {
		s.CPU, s.CPUUnit = cpu*1e6/float64(max(ops, 1)), "µs/op"
	}
}

func (r *Report) write(out io.Writer, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	return r.table(out)
}

func (r *Report) table(out io.Writer) error {
	head := []string{"WORKLOAD", "REGISTRY", "MEDIAN", "SPREAD", "RATIO", "P50 ms", "P99 ms"}
	processes, sinceStart := false, false
	for _, res := range r.Results {
		processes = processes || res.Server != nil
		sinceStart = sinceStart || res.Server != nil && res.Server.PeakSinceStart
	}
	if processes {
		head = append(head, "SERVER CPU", "PEAK MEMORY")
	}
	rows := [][]string{head}
	last := ""
	for _, res := range r.Results {
		name := res.Workload
		if name == last {
			name = ""
		}
		last = res.Workload
		rows = append(rows, append([]string{name, res.Target}, res.cells(len(head)-2)...))
	}
	text := aligned(rows) + fmt.Sprintf("\nSPREAD: half the range of the rounds. RATIO: to %s, median of the rounds' own ratios, above 1 is better.\n", r.Targets[0].Name)
	if sinceStart {
		text += "PEAK MEMORY with *: since the process started; resetting it was not permitted.\n"
	}
	for _, note := range r.Notes {
		text += note + "\n"
	}
	_, err := io.WriteString(out, text)
	return err
}

// cells are those after the names; a failure is one for all.
func (r *Result) cells(n int) []string {
	if r.Failed != "" {
		return []string{"failed: " + r.Failed}
	}
	cells := make([]string, n)
	cells[0], cells[1], cells[2] = figure(r.Median)+" "+r.Unit, fmt.Sprintf("±%.0f%%", r.Spread), "-"
	if r.Ratio > 0 {
		cells[2] = fmt.Sprintf("%.2f", r.Ratio)
	}
	if r.P50 > 0 {
		cells[3], cells[4] = figure(r.P50), figure(r.P99)
	}
	if s := r.Server; s != nil {
		cells[5] = figure(s.CPU) + " " + s.CPUUnit
		cells[6] = figure(float64(s.PeakBytes)/float64(mib)) + " MiB"
		if s.PeakSinceStart {
			cells[6] += " *"
		}
	}
	return cells
}

// aligned lays out rows in columns, names to the left and figures to the right.
// The last cell of a row that is shorter than the first one takes no part.
func aligned(rows [][]string) string {
	const names = 2
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			if len(row) == len(widths) || i < names {
				widths[i] = max(widths[i], utf8.RuneCountInString(cell))
			}
		}
	}
	var text strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", max(widths[i]-utf8.RuneCountInString(cell), 0))
			switch {
			case i < names:
				line.WriteString(cell + pad + "  ")
			case len(row) < len(widths):
				line.WriteString(cell)
			default:
				line.WriteString(pad + cell + "  ")
			}
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return text.String()
}

// figure shows three digits that count.
func figure(v float64) string {
	switch {
	case v >= 99.95: // prints as 100
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
